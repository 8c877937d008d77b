"""The plan of one iteration: which tokens are computed where, and which pages they may read.

Built from the replicated ledger alone, so every rank builds the same plan for all ranks, and no rank has to
be told what another will ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.models.segments import CacheView, Segment

I1 = NDArray[np.int8]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Chunk:
    """A prefill segment of a batch and the pages it reads."""

    segment: Segment
    first: int
    """Its first token within the batch."""
    blocks: I4
    """(p,) block slots of its pages."""
    rank_of: I1
    """(L, p) rank of each page that it reads, -1 for one that is gone or before the layer's window."""
    last_page_tokens: int
    """Valid tokens of its last page, after this iteration."""

    @property
    def tokens(self) -> slice:
        """Its tokens within the batch."""
        return slice(self.first, self.first + len(self.segment.token_ids))


@dataclass(frozen=True)
class Ask:
    """What one owner's tokens read on one rank in one layer."""

    layer: int
    rank: int
    rows: I8
    """(n,) decode rows of the batch."""
    chunks: tuple[Chunk, ...]
    tokens: I8
    """Tokens of the batch that ask: the rows, then the chunks' tokens."""
    observed: I8
    """(m,) positions in `rows` whose attention mass over the read pages is wanted."""


@dataclass(frozen=True)
class OwnerBatch:
    """One owner's tokens: first one for each decode row, then its prefill chunks."""

    owner: int
    decode: tuple[Segment, ...]
    blocks: I4
    """(n, P) block slots, -1 beyond a row's pages; P is common to all owners."""
    page_tokens_valid: I4
    """(n, P) valid tokens of each page, after this iteration."""
    resident: Mask
    """(L, n, P) pages that the ledger lets a row read: what read sets are chosen from."""
    rank_of: I1
    """(L, n, P) rank of each of them that the row attends to, -1 for the others: gone, or before the layer's window."""
    fixed: Mask
    """(n, P) the always-on set."""
    mass_wanted: Mask
    """(n,) rows observed over what they read (audited rows are observed against their shadow)."""
    chunks: tuple[Chunk, ...]
    input_ids: I8
    positions: I8
    token_blocks: I4
    """(tokens,) block slot that each token is written to, and its slot within the page."""
    token_offsets: I4
    windows: tuple[int, ...] = ()
    """Sliding window of every layer in tokens, 0 for none; empty: none anywhere."""

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return len(self.input_ids)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments in order of tokens."""
        return (*self.decode, *(chunk.segment for chunk in self.chunks))

    def window(self, layer: int) -> int:
        """Sliding window of a layer, 0 for none."""
        return self.windows[layer] if self.windows else 0

    def first_tokens(self, layer: int, page_tokens: int) -> I4 | None:
        """(n, P) first token slot that a row attends to in each page; None in layers without a window."""
        window = self.window(layer)
        if not window:
            return None
        first_key = np.array([segment.end - window for segment in self.decode], np.int64).reshape(-1, 1)
        starts = np.arange(self.blocks.shape[1]) * page_tokens
        return np.clip(first_key - starts, 0, page_tokens).astype(np.int32)

    def ask(self, layer: int, rank: int) -> Ask:
        """What these tokens read on `rank` in `layer`; every row asks its owner, which has its open page."""
        here = (self.rank_of[layer] == rank).any(axis=1)
        rows = np.arange(len(self.decode)) if rank == self.owner else np.flatnonzero(here)
        chunks = tuple(c for c in self.chunks if (c.rank_of[layer] == rank).any())
        tokens = np.concatenate([rows, *(np.arange(c.tokens.start, c.tokens.stop) for c in chunks)])
        return Ask(layer, rank, rows, chunks, tokens.astype(np.int64), np.flatnonzero(self.mass_wanted[rows]))


def build_plan(
    segments: Sequence[Segment], view: CacheView, page_tokens: int, world: int, windows: tuple[int, ...] = ()
) -> list[OwnerBatch]:
    """One batch for every rank, empty ones included; `windows` as in `OwnerBatch`.

    Raises:
        ValueError: A segment is empty, decodes several tokens, or needs a page that the ledger did not place.
    """
    for segment in segments:
        _check(segment, view, page_tokens)
    ends = [segment.end for segment in segments if segment.decode]
    pages = -(-max(ends, default=0) // page_tokens)
    return [
        _build_batch(rank, [s for s in segments if s.owner == rank], view, page_tokens, pages, windows)
        for rank in range(world)
    ]


def _check(segment: Segment, view: CacheView, page_tokens: int) -> None:
    count = len(segment.token_ids)
    if count == 0 or (segment.decode and count != 1):
        raise ValueError(
            f"slot {segment.slot}: {count} tokens in a {'decode' if segment.decode else 'prefill'} segment"
        )
    pages = -(-segment.end // page_tokens)
    if pages > view.page_block.shape[1] or (view.page_block[segment.slot, :pages] < 0).any():
        raise ValueError(f"slot {segment.slot}: the ledger has not placed all {pages} pages up to token {segment.end}")


def _build_batch(
    owner: int, segments: list[Segment], view: CacheView, page_tokens: int, pages: int, windows: tuple[int, ...]
) -> OwnerBatch:
    decode = tuple(s for s in segments if s.decode)
    slots = np.array([s.slot for s in decode], np.int64)
    ends = np.array([s.end for s in decode], np.int64)[:, None]
    page = np.arange(pages)
    counts = -(-ends // page_tokens)
    blocks = np.where(page < counts, view.page_block[slots, :pages], -1).astype(np.int32)
    ordered = [*decode, *(s for s in segments if not s.decode)]
    positions = _concatenate([np.arange(s.start, s.end) for s in ordered])
    ranks = _rank_of(view, slots, blocks)
    return OwnerBatch(
        owner=owner,
        decode=decode,
        blocks=blocks,
        page_tokens_valid=np.clip(ends - page * page_tokens, 0, page_tokens).astype(np.int32),
        resident=ranks >= 0,
        rank_of=_within_windows(ranks, ends[:, 0] - 1, page_tokens, windows),
        fixed=(page < counts) & ((page < view.sink_pages) | (page >= counts - 1 - view.window_pages)),
        mass_wanted=np.array([s.observe and not s.audited for s in decode], bool),
        chunks=_chunks(decode, segments, view, page_tokens, windows),
        input_ids=_concatenate([s.token_ids for s in ordered]),
        positions=positions,
        token_blocks=view.page_block[
            _concatenate([np.full(len(s.token_ids), s.slot) for s in ordered]), positions // page_tokens
        ],
        token_offsets=(positions % page_tokens).astype(np.int32),
        windows=windows,
    )


def _chunks(
    decode: Sequence[Segment],
    segments: Sequence[Segment],
    view: CacheView,
    page_tokens: int,
    windows: tuple[int, ...],
) -> tuple[Chunk, ...]:
    chunks, first = [], len(decode)
    for segment in segments:
        if segment.decode:
            continue
        pages = -(-segment.end // page_tokens)
        blocks = view.page_block[segment.slot, :pages].copy()
        ranks = _rank_of(view, np.array([segment.slot]), blocks[None])
        rank_of = _within_windows(ranks, np.array([segment.start]), page_tokens, windows)[:, 0]
        chunks.append(Chunk(segment, first, blocks, rank_of, segment.end - (pages - 1) * page_tokens))
        first += len(segment.token_ids)
    return tuple(chunks)


def _rank_of(view: CacheView, slots: I8, blocks: I4) -> I1:
    """(L, n, P): rank of page p of the n-th slot, -1 where it is not there or the slot dropped it."""
    pages = blocks.shape[1]
    live = view.page_live[slots, :pages] != 0
    readable = live & (blocks >= 0)[..., None] & (view.block_codec[blocks] >= 0)
    read_on = view.block_rank[blocks] if view.page_rank is None else view.page_rank[slots, :pages]
    ranks = np.where(readable, read_on, -1)
    return np.ascontiguousarray(ranks.transpose(2, 0, 1).astype(np.int8))


def _within_windows(rank_of: I1, first_query: I8, page_tokens: int, windows: tuple[int, ...]) -> I1:
    """`rank_of` (L, n, P) with -1 for pages that lie before the window of the first query at `first_query` (n,)."""
    if not windows:
        return rank_of
    first_key = first_query + 1 - np.array(windows)[:, None]
    before = (np.arange(rank_of.shape[2]) + 1) * page_tokens <= first_key[:, :, None]
    return np.where(before & (np.array(windows) > 0)[:, None, None], -1, rank_of).astype(np.int8)


def _concatenate(arrays: Sequence[NDArray]) -> I8:
    return np.concatenate([np.zeros(0, np.int64), *arrays]).astype(np.int64)
