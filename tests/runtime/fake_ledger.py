"""A ledger of a few lines: places pages where a test says, and emits the events that the real one would."""

from __future__ import annotations

import numpy as np

from pikv_runtime.ledger.state import Event
from pikv_runtime.models.runner import CacheView, Segment

LAYERS, EXPERTS, PAGE_TOKENS = 4, 8, 16


class FakeLedger:
    def __init__(
        self,
        slots: int = 4,
        pages: int = 16,
        blocks: int = 64,
        owners: tuple[int, ...] = (),
        page_tokens: int = PAGE_TOKENS,
    ) -> None:
        self.page_tokens = page_tokens
        shape = (slots, pages, LAYERS)
        self.owners = owners or (0,) * slots
        self.page_block = np.full((slots, pages), -1, np.int32)
        self.page_live, self.page_ghost = np.zeros(shape, np.int8), np.zeros(shape, np.int8)
        self.block_codec = np.full((blocks, LAYERS), -1, np.int8)
        self.block_rank = np.zeros((blocks, LAYERS), np.int8)
        self.block_tag = np.full((blocks, LAYERS), -1, np.int8)
        self.tokens = np.zeros(slots, np.int64)
        self._next, self._events = blocks, []

    def segment(self, slot: int, ids, decode: bool = False, **flags) -> Segment:
        start, end = int(self.tokens[slot]), int(self.tokens[slot]) + len(ids)
        for page in range(-(-start // self.page_tokens), -(-end // self.page_tokens)):
            if self.page_block[slot, page] < 0:
                self._next -= 1
                self.page_block[slot, page] = self._next
                self.block_codec[self._next] = 0
                self.block_rank[self._next] = self.owners[slot]
                self.page_live[slot, page] = 1
        self.tokens[slot] = end
        return Segment(slot, self.owners[slot], start, np.asarray(ids, np.int32), decode, **flags)

    def share(self, source: int, slot: int, pages: int) -> None:
        """Give `slot` the first pages of `source`, a prefix hit."""
        self.page_block[slot, :pages] = self.page_block[source, :pages]
        self.page_live[slot, :pages] = 1
        self.tokens[slot] = pages * self.page_tokens

    def move(self, slot: int, page: int, layer: int, rank: int) -> None:
        block = self.page_block[slot, page]
        here = int(self.block_rank[block, layer])
        if here != rank:
            self._events.append((Event.MOVE, block, layer, here, rank))
            self.block_rank[block, layer] = rank

    def encode(self, slot: int, page: int, layer: int, codec: int) -> None:
        block = self.page_block[slot, page]
        self._events.append((Event.ENCODE, block, layer, self.block_codec[block, layer], codec))
        self.block_codec[block, layer] = codec

    def evict(self, slot: int, page: int, layer: int) -> None:
        block = self.page_block[slot, page]
        codec, rank = self.block_codec[block, layer], self.block_rank[block, layer]
        self._events.append((Event.FREE, block, layer, codec, rank))
        self.block_codec[block, layer] = -1
        self.page_live[slot, page, layer], self.page_ghost[slot, page, layer] = 0, 1

    def drain(self) -> np.ndarray:
        events, self._events = np.array(self._events, np.int32).reshape(-1, 5), []
        return events

    def view(self, **options) -> CacheView:
        defaults = {"window_pages": 2, "sink_pages": 1}
        return CacheView(
            self.page_block, self.page_live, self.page_ghost,
            self.block_codec, self.block_rank, self.block_tag,
            **{**defaults, **options},
        )  # fmt: skip
