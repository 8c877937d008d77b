"""What one rank computes over the pages it stores, for its own requests and for those of other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_kernels import paged_decode_attention, partial_attention
from pikv_runtime.cache import PagedStore
from pikv_runtime.models.plan import Ask, Chunk, OwnerBatch

I4 = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Question:
    """Queries of one owner, arrived at the rank that stores some of their pages."""

    batch: OwnerBatch
    ask: Ask
    q: Tensor
    """(ask.tokens, H_q, D)"""
    read: Mask
    """(ask.rows, P) read set, always-on set included."""


@dataclass(frozen=True)
class Answer:
    """Partial attention of the tokens of a question."""

    out: Tensor
    """(ask.tokens, H_q, D) fp32"""
    lse: Tensor
    """(ask.tokens, H_q) fp32, -inf where nothing was read."""
    page_lse: Tensor
    """(ask.observed, P, H_q) fp32 log-sum-exp of each page, -inf where it was not read."""


def answer(store: PagedStore, rank: int, layer: int, questions: Sequence[Question], scale: float) -> list[Answer]:
    """Answer every owner's questions to `rank`; decode rows of all owners share one paged attention."""
    reads = [q.read & (q.batch.rank_of[layer][q.ask.rows] == rank) for q in questions]
    rows = [len(q.ask.rows) for q in questions]
    out, lse = _paged(
        store,
        layer,
        torch.cat([question.q[:n] for question, n in zip(questions, rows, strict=True)]),
        np.concatenate(reads),
        np.concatenate([q.batch.blocks[q.ask.rows] for q in questions]),
        np.concatenate([q.batch.page_tokens_valid[q.ask.rows] for q in questions]),
        _first_tokens(questions, layer, store.page_shape[1]),
        scale,
    )
    answers = []
    for question, read, row_out, row_lse in zip(
        questions, reads, torch.split(out, rows), torch.split(lse, rows), strict=True
    ):
        parts = [(row_out, row_lse), *_chunk_partials(store, rank, layer, question, scale)]
        page_lse = _page_lse(store, layer, question, read, scale)
        answers.append(Answer(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), page_lse))
    return answers


def _first_tokens(questions: Sequence[Question], layer: int, page_tokens: int) -> I4 | None:
    """(n, P) first token slot that each row attends to, None in layers without a window."""
    firsts = [(question.batch.first_tokens(layer, page_tokens), question.ask.rows) for question in questions]
    return np.concatenate([f[rows] for f, rows in firsts if f is not None]) if firsts[0][0] is not None else None


def _paged(
    store: PagedStore, layer: int, q: Tensor, read: Mask, blocks: I4, valid: I4, first: I4 | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of decode rows (n, H_q, D) over the pages that `read` (n, P) marks, from slot `first` (n, P) on."""
    pool = store.pool()
    widest = int(read.sum(1).max(initial=0))
    if pool is None or widest == 0:
        nothing = q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)
        return nothing.new_zeros(*q.shape[:2], store.v_dim), nothing
    if widest < read.shape[1]:  # bring the read pages to the front: the kernels pay for the table's width
        order = np.argsort(~read, axis=1, kind="stable")[:, :widest]
        read = np.take_along_axis(read, order, 1)
        blocks, valid = np.take_along_axis(blocks, order, 1), np.take_along_axis(valid, order, 1)
        first = None if first is None else np.take_along_axis(first, order, 1)
    table = np.where(read, layer * store.blocks + blocks, -1).astype(np.int32)
    return paged_decode_attention(
        q,
        pool,
        torch.from_numpy(table).to(q.device),
        torch.from_numpy(np.ascontiguousarray(valid)).to(q.device),
        scale,
        first_token=None if first is None else torch.from_numpy(np.ascontiguousarray(first)).to(q.device),
    )


def _chunk_partials(
    store: PagedStore, rank: int, layer: int, question: Question, scale: float
) -> list[tuple[Tensor, Tensor]]:
    partials, first = [], len(question.ask.rows)
    for chunk in question.ask.chunks:
        count = len(chunk.segment.token_ids)
        q = question.q[first : first + count]
        partials.append(_chunk(store, layer, chunk, rank, question.batch, q, scale))
        first += count
    return partials


def _chunk(
    store: PagedStore, layer: int, chunk: Chunk, rank: int, batch: OwnerBatch, q: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of a prefill chunk over its pages here: causal at the owner, whole at another rank."""
    here = np.flatnonzero(chunk.rank_of[layer] == rank)
    k, v = (x.transpose(1, 2).flatten(0, 1) for x in store.gather(layer, chunk.blocks[here]))
    if batch.window(layer):
        mask = _window_mask(chunk, here, store.page_shape[1], batch.window(layer))
        return partial_attention(q, k, v, torch.from_numpy(mask).to(q.device), scale)
    if rank != batch.owner:
        # Pages leave their owner when they are sealed, hence full: all of them precede the chunk.
        return partial_attention(q, k, v, None, scale)
    spare = store.page_shape[1] - chunk.last_page_tokens
    k, v = k[: len(k) - spare], v[: len(v) - spare]
    # The chunk's own keys are the last ones, whatever is missing or elsewhere before them.
    return partial_attention(q, k, v, len(k) - len(q), scale)


def _window_mask(chunk: Chunk, pages: NDArray[np.int64], page_tokens: int, window: int) -> Mask:
    """(queries, keys): True where a query of the chunk sees a key of `pages`."""
    keys = (pages[:, None] * page_tokens + np.arange(page_tokens)).ravel()
    queries = np.arange(chunk.segment.start, chunk.segment.end)[:, None]
    return (keys <= queries) & (keys > queries - window)


def _page_lse(store: PagedStore, layer: int, question: Question, read: Mask, scale: float) -> Tensor:
    """Log-sum-exp of the scores of each page that observed rows read here, (observed, P, H_q)."""
    ask, batch = question.ask, question.batch
    heads, first = question.q.shape[1], batch.first_tokens(layer, store.page_shape[1])
    result = question.q.new_full((len(ask.observed), read.shape[1], heads), -torch.inf, dtype=torch.float32)
    for i, position in enumerate(ask.observed):
        pages, row = np.flatnonzero(read[position]), ask.rows[position]
        if len(pages) == 0:
            continue
        k, _ = store.gather(layer, batch.blocks[row, pages])
        slots = np.arange(k.shape[2])
        unread = slots >= batch.page_tokens_valid[row, pages, None]
        if first is not None:
            unread |= slots < first[row, pages, None]
        scores = key_scores(question.q[position], k.transpose(1, 2), scale)
        scores = scores.masked_fill(torch.from_numpy(unread)[:, :, None].to(scores.device), -torch.inf)
        result[i, torch.from_numpy(pages)] = torch.logsumexp(scores, dim=1)
    return result


def key_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Scores of one query (H_q, D) on keys (..., H_kv, D), grouped-query aware: (..., H_q) fp32."""
    kv_heads = k.shape[-2]
    grouped = q.float().view(kv_heads, -1, q.shape[-1])
    return (torch.einsum("...hd,hgd->...hg", k.float(), grouped) * scale).flatten(-2)
