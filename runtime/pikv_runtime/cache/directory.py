"""Keeps tensors in agreement with the ledger: opens the pages it placed, applies the events it emitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_runtime.cache.store import ABSENT, NATIVE, PagedStore
from pikv_runtime.ledger.state import CODECS, Event
from pikv_runtime.transport import Transport, pack, unpack

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]


class PageDirectory:
    """Where every page's tensors are and in which codec, on all ranks and their hosts; replicated like the ledger.

    It trails the ledger: the ledger decides at once, tensors follow when `apply` is called. Every process
    must be given the same events in the same order, because moves are collective.
    """

    def __init__(self, stores: Mapping[int, PagedStore], transport: Transport, blocks: int, layers: int) -> None:
        self.stores = stores
        self._transport = transport
        self._codec = np.full((blocks, layers), ABSENT, np.int8)
        self._held = np.zeros((transport.world, blocks, layers), np.bool_)  # which ranks hold a page; mostly one
        self._host = np.zeros((blocks, layers), np.bool_)

    def open(self, block_codec: NDArray[np.int8], block_rank: NDArray[np.int8]) -> None:
        """Open the native pages that the ledger placed since the last call; arrays are (B, L)."""
        blocks, layers = np.nonzero((block_codec == NATIVE) & (self._codec == ABSENT))
        if len(blocks) == 0:
            return
        ranks = block_rank[blocks, layers]
        self._codec[blocks, layers] = NATIVE
        self._held[ranks, blocks, layers] = True
        for rank, store in self.stores.items():
            here = ranks == rank
            if here.any():
                store.open(layers[here], blocks[here])

    def apply(self, events: I4) -> None:
        """Apply the ledger's events (M, 5) in order.

        Events of different pages are independent, so they are applied in waves: first every page's first
        event, then every page's second, …; within a wave, kinds are batched and all moves share one
        message.
        """
        for wave in _waves(events):
            self._free(wave[wave[:, 0] == Event.FREE])
            self._encode(wave[wave[:, 0] == Event.ENCODE])
            self._send(wave[wave[:, 0] == Event.MOVE], move=True)
            self._send(wave[wave[:, 0] == Event.COPY], move=False)
            self._drop(wave[wave[:, 0] == Event.DROP])
            self._swap(wave[wave[:, 0] == Event.SWAP_OUT], out=True)
            self._swap(wave[wave[:, 0] == Event.SWAP_IN], out=False)

    def _free(self, events: I4) -> None:
        blocks, layers = events[:, 1], events[:, 2]
        # Pages that the ledger placed and freed between two forward passes never had tensors.
        known = self._codec[blocks, layers] != ABSENT
        blocks, layers = blocks[known], layers[known]
        hosted = self._host[blocks, layers]
        for rank, store in self.stores.items():
            held = self._held[rank, blocks, layers]
            for free, here in ((store.free, ~hosted), (store.free_host, hosted)):
                some = here & held
                if some.any():
                    free(layers[some], blocks[some])
        self._codec[blocks, layers], self._host[blocks, layers] = ABSENT, False
        self._held[:, blocks, layers] = False

    def _drop(self, events: I4) -> None:
        """Free single copies; the pages stay on other ranks."""
        blocks, layers, ranks = events[:, 1], events[:, 2], events[:, 4]
        for rank, store in self.stores.items():
            here = ranks == rank
            if here.any():
                store.free(layers[here], blocks[here])
        self._held[ranks, blocks, layers] = False

    def _swap(self, events: I4, out: bool) -> None:
        """Move pages between a rank's device and its host memory."""
        blocks, layers = events[:, 1], events[:, 2]
        for rank, store in self.stores.items():
            here = self._held[rank, blocks, layers]
            if here.any():
                (store.swap_out if out else store.swap_in)(layers[here], blocks[here])
        self._host[blocks, layers] = out

    def _encode(self, events: I4) -> None:
        for codec in np.unique(events[:, 4]).tolist():
            chosen = events[:, 4] == codec
            blocks, layers = events[chosen, 1], events[chosen, 2]
            for rank, store in self.stores.items():
                here = self._held[rank, blocks, layers]
                if here.any():
                    store.encode(layers[here], blocks[here], codec)
            self._codec[blocks, layers] = codec

    def _send(self, events: I4, move: bool) -> None:
        """Send pages to other ranks; with `move` their senders forget them."""
        if len(events) == 0:
            return
        world, local = self._transport.world, self._transport.local_ranks
        blocks, layers = events[:, 1], events[:, 2]
        order = np.argsort(self._codec[blocks, layers], kind="stable")  # pages of a message: by codec
        blocks, layers, sources, targets = (column[order] for column in events[:, 1:].T)
        codecs = self._codec[blocks, layers]
        size = np.array([self.stores[local[0]].page_bytes(k) for k in range(len(CODECS))])[codecs]

        def pages(src: int, dst: int) -> NDArray[np.bool_]:
            return (sources == src) & (targets == dst)

        outgoing = [[self._pick_up(blocks, layers, pages(i, d), i, move) for d in range(world)] for i in local]
        incoming = [[int(size[pages(s, i)].sum()) for s in range(world)] for i in local]
        messages = self._transport.all_to_all(outgoing, incoming, "page_move")
        for i, received in zip(local, messages, strict=True):
            for src, message in enumerate(received):
                self._set_down(blocks, layers, pages(src, i), i, message)
        self._held[sources, blocks, layers] = not move
        self._held[targets, blocks, layers] = True

    def _by_codec(self, blocks: I4, layers: I4, chosen: NDArray[np.bool_]) -> Iterator[tuple[int, I8]]:
        codecs = self._codec[blocks, layers]
        for codec in np.unique(codecs[chosen]).tolist():
            yield codec, np.flatnonzero(chosen & (codecs == codec))

    def _pick_up(self, blocks: I4, layers: I4, chosen: NDArray[np.bool_], rank: int, move: bool) -> Tensor:
        store = self.stores[rank]
        read = store.take if move else store.read
        parts = [read(layers[some], blocks[some]) for _, some in self._by_codec(blocks, layers, chosen)]
        return pack(parts)

    def _set_down(self, blocks: I4, layers: I4, chosen: NDArray[np.bool_], rank: int, message: Tensor) -> None:
        store = self.stores[rank]
        groups = list(self._by_codec(blocks, layers, chosen))
        shapes = [((len(some), store.page_bytes(codec)), torch.uint8) for codec, some in groups]
        for (codec, some), flat in zip(groups, unpack(message, shapes), strict=True):
            store.put(layers[some], blocks[some], codec, flat)


def _waves(events: I4) -> Iterator[I4]:
    """Split events so that no page occurs twice in a wave and every page's order is kept."""
    while len(events):
        key = events[:, 1].astype(np.int64) << 32 | events[:, 2]
        first = np.sort(np.unique(key, return_index=True)[1])
        yield events[first]
        events = np.delete(events, first, axis=0)
