"""Triton kernels of `scores`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pikv_kernels.payload import CODE_BITS, CODECS, PagePayload
from pikv_kernels.triton_tiles import float_tile, fp8_k_tile, k_tile

_PAGE_TILE, _UTILITY_TILE = 32, 256


@triton.jit
def summary_kernel(
    rows, stored, scale, zero, mean, low, high, SOURCE: tl.constexpr, HEADS: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr, DIM: tl.constexpr, DIM_TILE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """One program: one head of one page, read once."""
    page, head = tl.program_id(0), tl.program_id(1)
    slot, dim = tl.arange(0, ROWS), tl.arange(0, DIM_TILE)
    inside = slot < PAGE_TOKENS
    unit = tl.zeros((ROWS,), tl.int64) + tl.load(rows + page).to(tl.int64) * HEADS + head
    if SOURCE < 2:
        k = float_tile(stored, unit, slot, inside, PAGE_TOKENS, DIM, DIM_TILE, tl.float32)
    elif SOURCE == 3:
        k = fp8_k_tile(stored, scale, unit, slot, inside, PAGE_TOKENS, DIM, DIM_TILE, tl.float32)
    else:
        k = k_tile(stored, scale, zero, unit, slot, inside, PAGE_TOKENS, DIM, DIM_TILE, ROWS, BITS, tl.float32)
    at = (page * HEADS + head).to(tl.int64) * DIM + dim
    tl.store(mean + at, tl.sum(k, 0) / PAGE_TOKENS, mask=dim < DIM)  # slots beyond the page are 0
    tl.store(low + at, tl.min(tl.where(inside[:, None], k, float("inf")), 0), mask=dim < DIM)
    tl.store(high + at, tl.max(tl.where(inside[:, None], k, float("-inf")), 0), mask=dim < DIM)


@triton.jit
def score_kernel(
    query, low, high, index, scores, width, HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_TILE: tl.constexpr,
    DIM: tl.constexpr, DIM_TILE: tl.constexpr, PAGE_TILE: tl.constexpr, INDEXED: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """One program: one row, one tile of pages. With BOUND the largest product with a key between `low` and `high`, else
    the product with `low`. The mean over query heads is taken of the query: each page's numbers are read once."""
    row, at = tl.program_id(0), tl.program_id(1) * PAGE_TILE + tl.arange(0, PAGE_TILE)
    dim, member = tl.arange(0, DIM_TILE), tl.arange(0, GROUP_TILE)
    listed = at < width
    page = row.to(tl.int64) * width + at
    if INDEXED:
        page = tl.load(index + page, mask=listed, other=-1).to(tl.int64)
        listed = listed & (page >= 0)
    total = tl.zeros((PAGE_TILE,), tl.float32)
    for head in tl.static_range(HEADS):
        q_at = ((row * HEADS + head) * GROUP + member)[:, None] * DIM + dim[None, :]
        inside = (member < GROUP)[:, None] & (dim < DIM)[None, :]
        q = tl.load(query + q_at, mask=inside, other=0.0).to(tl.float32)
        key_at = (page * HEADS + head)[:, None] * DIM + dim[None, :]
        read = listed[:, None] & (dim < DIM)[None, :]
        keys = tl.load(low + key_at, mask=read, other=0.0).to(tl.float32)
        if BOUND:
            up = tl.sum(tl.maximum(q, 0.0), 0) / GROUP
            down = tl.sum(tl.minimum(q, 0.0), 0) / GROUP
            top = tl.load(high + key_at, mask=read, other=0.0).to(tl.float32)
            total += tl.sum(top * up[None, :] + keys * down[None, :], 1)
        else:
            total += tl.sum(keys * (tl.sum(q, 0) / GROUP)[None, :], 1)
    tl.store(scores + row.to(tl.int64) * width + at, total / HEADS, mask=at < width)


@triton.jit
def utility_kernel(features, weights, utility, items, FEATURES: tl.constexpr, FEATURE_TILE: tl.constexpr,
                   TILE: tl.constexpr):  # fmt: skip
    """One program: the weighted sums of one tile of pages."""
    item, feature = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE), tl.arange(0, FEATURE_TILE)
    weight = tl.load(weights + feature, mask=feature < FEATURES, other=0.0).to(tl.float32)
    read = (item < items)[:, None] & (feature < FEATURES)[None, :]
    value = tl.load(features + item[:, None] * FEATURES + feature[None, :], mask=read, other=0.0).to(tl.float32)
    tl.store(utility + item, tl.sum(value * weight[None, :], 1), mask=item < items)


def triton_key_summaries(payload: PagePayload, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Launch; arguments and results as `scores.key_summaries`."""
    shape = (len(rows), payload.heads, payload.head_dim)
    mean, low, high = torch.empty(3, *shape, dtype=torch.float32, device=payload.k.device).unbind(0)
    if mean.numel():
        fields = payload.tensors()
        summary_kernel[(len(rows), payload.heads)](
            rows, payload.k, fields.get("k_scale", payload.k), fields.get("k_zero", payload.k), mean, low, high,
            SOURCE=CODECS.index(payload.codec), HEADS=payload.heads, PAGE_TOKENS=payload.page_tokens,
            ROWS=triton.next_power_of_2(payload.page_tokens), DIM=payload.head_dim,
            DIM_TILE=triton.next_power_of_2(payload.head_dim), BITS=CODE_BITS.get(payload.codec, 8), num_warps=4,
        )  # fmt: skip
    return mean, low, high


def triton_page_scores(query: Tensor, low: Tensor, high: Tensor, index: Tensor | None, *, bound: bool) -> Tensor:
    """Launch; arguments and result as `scores.bound_scores`, or, without `bound`, as `scores.centroid_scores`."""
    rows, query_heads, head_dim = query.shape
    heads, width = low.shape[-2], low.shape[1] if index is None else index.shape[1]
    scores = torch.empty(rows, width, dtype=torch.float32, device=query.device)
    if scores.numel():
        tile = min(_PAGE_TILE, triton.next_power_of_2(width))
        group = query_heads // heads
        score_kernel[(rows, triton.cdiv(width, tile))](
            query.contiguous(), low.contiguous(), high.contiguous(), query if index is None else index.contiguous(),
            scores, width, HEADS=heads, GROUP=group, GROUP_TILE=triton.next_power_of_2(group), DIM=head_dim,
            DIM_TILE=triton.next_power_of_2(head_dim), PAGE_TILE=tile, INDEXED=index is not None, BOUND=bound,
            num_warps=4,
        )  # fmt: skip
    return scores


def triton_page_utility(features: Tensor, weights: Tensor) -> Tensor:
    """Launch; arguments and result as `scores.page_utility`."""
    utility = torch.empty(features.shape[:-1], dtype=torch.float32, device=features.device)
    items, count = utility.numel(), len(weights)
    if items:
        utility_kernel[(triton.cdiv(items, _UTILITY_TILE),)](
            features.contiguous(), weights.contiguous(), utility, items, FEATURES=count,
            FEATURE_TILE=triton.next_power_of_2(count), TILE=_UTILITY_TILE, num_warps=4,
        )  # fmt: skip
    return utility
