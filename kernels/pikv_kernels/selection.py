"""Choosing by score: read sets, victims, experts. Ties go to the lower index everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from pikv_kernels.dispatch import use_triton


def read_set(score: Tensor, candidate: Tensor, fan_out: float, bias: Tensor | None = None) -> Tensor:
    """The best share of each row's candidate pages, as the ledger chooses them (`ledger.readset.select`).

    Args:
        score: ``(rows, pages)`` fp32 router scores; only those of candidates are looked at.
        candidate: ``(rows, pages)`` bool: resident and outside the always-on set.
        fan_out: Share of a row's candidates that is read, rounded up to whole pages.
        bias: ``(rows, pages)`` fp32, added to the scores once their mean over candidates is 0 and their spread 1.
            None: no bias, and the scores' scale does not matter.

    Returns:
        ``(rows, pages)`` bool.

    Raises:
        ValueError: Shapes differ, or a fan_out outside [0, 1].
    """
    if not 0.0 <= fan_out <= 1.0:
        raise ValueError(f"fan_out must be in [0, 1], got {fan_out}")
    _check(score, candidate, bias)
    if use_triton(score):
        from pikv_kernels.triton_selection import triton_choose  # triton may be missing elsewhere

        return triton_choose(score, candidate, fan_out=fan_out, bias=bias, largest=True)
    quota = torch.ceil(candidate.sum(1, dtype=torch.float64) * fan_out - 1e-9).long()
    if bias is not None:
        inside = candidate.to(torch.float32)
        count = inside.sum(1, keepdim=True).clamp(min=1.0)
        centred = score - (score.masked_fill(~candidate, 0.0).sum(1, keepdim=True) / count)
        spread = centred.masked_fill(~candidate, 0.0).square().sum(1, keepdim=True) / count
        score = centred * torch.rsqrt(spread + 1e-12) + bias
    return _best(score.masked_fill(~candidate, -torch.inf), candidate, quota)


def victims(utility: Tensor, evictable: Tensor, count: Tensor) -> Tensor:
    """The pages of lowest utility.

    Args:
        utility: ``(rows, pages)`` fp32, a row for each group that pages are freed from.
        evictable: ``(rows, pages)`` bool.
        count: ``(rows,)`` int32: how many to free; all evictable ones where there are fewer.

    Returns:
        ``(rows, pages)`` bool.

    Raises:
        ValueError: Shapes differ.
    """
    _check(utility, evictable, None)
    if count.shape != utility.shape[:1]:
        raise ValueError(f"count {tuple(count.shape)} must be ({len(utility)},)")
    if use_triton(utility):
        from pikv_kernels.triton_selection import triton_choose

        return triton_choose(utility, evictable, count=count, largest=False)
    return _best((-utility).masked_fill(~evictable, -torch.inf), evictable, count.long())


def listed(mask: Tensor, page_table: Tensor, tokens_in_page: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Bring the chosen pages to the front of a page table: attention pays for a table's width.

    Args:
        mask: ``(rows, pages)`` bool.
        page_table: ``(rows, pages)`` int32.
        tokens_in_page: ``(rows, pages)`` int32.
        width: Columns of the result; what does not fit is not listed, so it must be as many as a row chooses at most.

    Returns:
        Page table and tokens ``(rows, width)`` int32, in order of pages; -1 and 0 where a row has chosen fewer.

    Raises:
        ValueError: Shapes differ.
    """
    if not mask.shape == page_table.shape == tokens_in_page.shape:
        shapes = [tuple(x.shape) for x in (mask, page_table, tokens_in_page)]
        raise ValueError(f"mask, page_table and tokens_in_page must have one shape (rows, pages), got {shapes}")
    if use_triton(page_table):
        from pikv_kernels.triton_selection import triton_listed

        return triton_listed(mask, page_table, tokens_in_page, width)
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)[:, :width]
    chosen = mask.gather(1, order)
    table = page_table.gather(1, order).masked_fill(~chosen, -1).int()
    tokens = tokens_in_page.gather(1, order).masked_fill(~chosen, 0).int()
    spare = (0, width - table.shape[1])
    return torch.nn.functional.pad(table, spare, value=-1), torch.nn.functional.pad(tokens, spare)


def biased_gate(logits: Tensor, bias: Tensor, experts: int, *, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Top-k gate whose choice is biased and whose weights are not.

    Args:
        logits: ``(tokens, all_experts)`` float.
        bias: ``(all_experts,)`` float, added to the logits where experts are chosen, and nowhere else.
        experts: How many a token gets.
        renormalise: Whether the weights of a token's experts sum to 1; else they are the softmax over all experts.

    Returns:
        Weights ``(tokens, experts)`` fp32 and experts ``(tokens, experts)`` int64, best first.

    Raises:
        ValueError: More experts than there are, or a bias of another length.
    """
    if bias.shape != logits.shape[1:] or not 1 <= experts <= logits.shape[1]:
        raise ValueError(f"logits {tuple(logits.shape)}, bias {tuple(bias.shape)}: cannot choose {experts} experts")
    if use_triton(logits):
        from pikv_kernels.triton_selection import triton_biased_gate

        return triton_biased_gate(logits, bias, experts, renormalise=renormalise)
    logits = logits.float()
    # a stable sort: topk leaves open which of equal logits it takes
    chosen = torch.sort(logits + bias.float(), dim=1, descending=True, stable=True).indices[:, :experts]
    weights = torch.softmax(logits, 1).gather(1, chosen)
    return weights / weights.sum(1, keepdim=True) if renormalise else weights, chosen


def _best(value: Tensor, candidate: Tensor, quota: Tensor) -> Tensor:
    order = torch.sort(value, dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (rank < quota.unsqueeze(1)) & candidate


def _check(score: Tensor, candidate: Tensor, bias: Tensor | None) -> None:
    shapes = [tuple(x.shape) for x in (score, candidate, bias) if x is not None]
    if score.ndim != 2 or len(set(shapes)) != 1 or candidate.dtype != torch.bool:
        raise ValueError(
            f"scores, bool mask and bias must have one shape (rows, pages), got {shapes}, {candidate.dtype}"
        )
