"""Triton kernels of `selection`: no sorting; the value of the last chosen entry is found bit by bit."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048


@triton.jit
def _values(score, candidate, bias, at, inside, mean, scale, LARGEST: tl.constexpr, BIASED: tl.constexpr):
    """Entries as int32 in the order of their values (the lowest is chosen last), and which of them may be chosen."""
    may = tl.load(candidate + at, mask=inside, other=0) != 0
    value = tl.load(score + at, mask=may, other=0.0).to(tl.float32)
    if BIASED:
        value = (value - mean) * scale + tl.load(bias + at, mask=may, other=0.0).to(tl.float32)
    if not LARGEST:
        value = -value
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)  # -0 is as good as 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF), may


@triton.jit
def choose_kernel(
    score, candidate, bias, counts, mask, pages, share, share_rest, TILE: tl.constexpr, LARGEST: tl.constexpr,
    BIASED: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """One program: one row. Finds the largest int32 that at least `quota` entries reach, one bit a pass, then
    takes what is above it and of what equals it the first."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, TILE)
    start = row * pages
    there, total, mean, scale = 0, 0.0, 0.0, 0.0
    for first in range(0, pages, TILE):
        at, inside = start + first + lane, first + lane < pages
        may = tl.load(candidate + at, mask=inside, other=0) != 0
        there += tl.sum(may.to(tl.int32), 0)
        total += tl.sum(tl.load(score + at, mask=may, other=0.0).to(tl.float32), 0)
    if BIASED:
        mean, spread = total / tl.maximum(there, 1), 0.0
        for first in range(0, pages, TILE):
            at, inside = start + first + lane, first + lane < pages
            may = tl.load(candidate + at, mask=inside, other=0) != 0
            away = tl.where(may, tl.load(score + at, mask=may, other=0.0).to(tl.float32) - mean, 0.0)
            spread += tl.sum(away * away, 0)
        scale = 1.0 / tl.sqrt(spread / tl.maximum(there, 1) + 1e-12)
    if SHARE:
        exact = tl.full((), share, tl.float64) + tl.full((), share_rest, tl.float64)  # arguments are fp32: in two parts
        wanted = tl.ceil(exact * there - 1e-9).to(tl.int32)
    else:
        wanted = tl.load(counts + row).to(tl.int32)
    quota = tl.minimum(wanted, there)

    lowest, highest = tl.full((), -(2**31), tl.int64), tl.full((), 2**31, tl.int64)
    while lowest + 1 < highest:  # `quota` entries reach `lowest`, fewer reach `highest`
        middle = (lowest + highest) >> 1
        reach = 0
        for first in range(0, pages, TILE):
            at, inside = start + first + lane, first + lane < pages
            value, may = _values(score, candidate, bias, at, inside, mean, scale, LARGEST, BIASED)
            reach += tl.sum((may & (value >= middle.to(tl.int32))).to(tl.int32), 0)
        enough = reach >= quota
        lowest, highest = tl.where(enough, middle, lowest), tl.where(enough, highest, middle)
    above = 0
    for first in range(0, pages, TILE):
        at, inside = start + first + lane, first + lane < pages
        value, may = _values(score, candidate, bias, at, inside, mean, scale, LARGEST, BIASED)
        above += tl.sum((may & (value > lowest.to(tl.int32))).to(tl.int32), 0)
    left = quota - above
    for first in range(0, pages, TILE):
        at, inside = start + first + lane, first + lane < pages
        value, may = _values(score, candidate, bias, at, inside, mean, scale, LARGEST, BIASED)
        equal = (may & (value == lowest.to(tl.int32))).to(tl.int32)
        chosen = (may & (value > lowest.to(tl.int32))) | ((equal > 0) & (tl.cumsum(equal, 0) <= left))
        tl.store(mask + at, chosen.to(tl.int8), mask=inside)
        left -= tl.sum(equal, 0)


@triton.jit
def list_kernel(mask, table, tokens, to_table, to_tokens, pages, width, TILE: tl.constexpr):
    """One program: one row."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, TILE)
    taken = 0
    for first in range(0, pages, TILE):
        at, inside = row * pages + first + lane, first + lane < pages
        chosen = tl.load(mask + at, mask=inside, other=0).to(tl.int32)
        place = taken + tl.cumsum(chosen, 0) - 1
        store = (chosen > 0) & (place < width)
        tl.store(to_table + row * width + place, tl.load(table + at, mask=store, other=-1), mask=store)
        tl.store(to_tokens + row * width + place, tl.load(tokens + at, mask=store, other=0), mask=store)
        taken += tl.sum(chosen, 0)
    for first in range(0, width, TILE):
        place = first + lane
        store = (place >= taken) & (place < width)
        tl.store(to_table + row * width + place, tl.full((TILE,), -1, tl.int32), mask=store)
        tl.store(to_tokens + row * width + place, tl.zeros((TILE,), tl.int32), mask=store)


@triton.jit
def gate_kernel(logits, bias, weights, chosen, ALL: tl.constexpr, TILE: tl.constexpr, EXPERTS: tl.constexpr,
                RENORMALISE: tl.constexpr):  # fmt: skip
    """One program: one token; its experts one after the other."""
    token, expert = tl.program_id(0).to(tl.int64), tl.arange(0, TILE)
    inside = expert < ALL
    logit = tl.load(logits + token * ALL + expert, mask=inside, other=float("-inf")).to(tl.float32)
    odds = tl.exp(logit - tl.max(logit, 0))
    total = tl.sum(odds, 0)
    value = logit + tl.load(bias + expert, mask=inside, other=0.0).to(tl.float32)
    free = inside
    for _ in tl.static_range(EXPERTS):
        best = tl.max(tl.where(free, value, float("-inf")), 0)
        first = tl.min(tl.where(free & (value == best), expert, TILE), 0)
        free = free & (expert != first)
    if RENORMALISE:
        total = tl.sum(tl.where(inside & (free == 0), odds, 0.0), 0)
    free = inside
    for place in tl.static_range(EXPERTS):
        best = tl.max(tl.where(free, value, float("-inf")), 0)
        first = tl.min(tl.where(free & (value == best), expert, TILE), 0)
        free = free & (expert != first)
        tl.store(chosen + token * EXPERTS + place, first.to(tl.int64))
        tl.store(weights + token * EXPERTS + place, tl.sum(tl.where(expert == first, odds, 0.0), 0) / total)


def triton_choose(
    score: Tensor,
    candidate: Tensor,
    *,
    largest: bool,
    fan_out: float | None = None,
    count: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Launch: the best entries of each row, a share of its candidates or a count; ``(rows, pages)`` bool."""
    rows, pages = score.shape
    mask = torch.empty(rows, pages, dtype=torch.bool, device=score.device)
    if mask.numel():
        share = 0.0 if fan_out is None else float(np.float32(fan_out))
        choose_kernel[(rows,)](
            score.contiguous(), candidate.contiguous().view(torch.int8),
            score if bias is None else bias.contiguous(), score if count is None else count, mask.view(torch.int8),
            pages, share, 0.0 if fan_out is None else fan_out - share, TILE=_tile(pages), LARGEST=largest,
            BIASED=bias is not None, SHARE=fan_out is not None, num_warps=8,
        )  # fmt: skip
    return mask


def triton_listed(mask: Tensor, page_table: Tensor, tokens_in_page: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Launch; arguments and results as `selection.listed`."""
    rows, pages = mask.shape
    table, tokens = torch.empty(2, rows, width, dtype=torch.int32, device=mask.device).unbind(0)
    if table.numel():
        list_kernel[(rows,)](
            mask.contiguous().view(torch.int8), page_table.contiguous(), tokens_in_page.contiguous(), table, tokens,
            pages, width, TILE=_tile(max(pages, width)), num_warps=8,
        )  # fmt: skip
    return table, tokens


def triton_biased_gate(logits: Tensor, bias: Tensor, experts: int, *, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Launch; arguments and results as `selection.biased_gate`."""
    tokens, all_experts = logits.shape
    weights = torch.empty(tokens, experts, dtype=torch.float32, device=logits.device)
    chosen = torch.empty(tokens, experts, dtype=torch.int64, device=logits.device)
    if tokens:
        gate_kernel[(tokens,)](
            logits.contiguous(), bias.contiguous(), weights, chosen, ALL=all_experts,
            TILE=triton.next_power_of_2(all_experts), EXPERTS=experts, RENORMALISE=renormalise, num_warps=1,
        )  # fmt: skip
    return weights, chosen


def _tile(entries: int) -> int:
    return min(_TILE, max(16, triton.next_power_of_2(entries)))
