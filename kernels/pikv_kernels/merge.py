"""Merge of partial attention results over disjoint key sets."""

from __future__ import annotations

import torch
from torch import Tensor

from pikv_kernels.dispatch import use_triton


def merge_partials(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Combine attention over disjoint key sets into attention over their union, in fp32.

    Args:
        outs: ``(parts, ..., head_dim)`` float, each part normalised by its own softmax. What a part with
            lse = -inf holds is ignored, NaN included.
        lses: ``(parts, ...)`` natural log of each part's softmax denominator; -inf where it read nothing.

    Returns:
        ``out (..., head_dim)`` and ``lse (...)``, both fp32; 0 and -inf where every part is empty.

    Raises:
        ValueError: The leading shapes differ.
    """
    if outs.shape[:-1] != lses.shape:
        raise ValueError(f"outs {tuple(outs.shape)} must be lses {tuple(lses.shape)} plus a head_dim axis")
    if use_triton(outs):
        from pikv_kernels.triton_merge import triton_merge_partials  # triton may be missing elsewhere

        return triton_merge_partials(outs, lses)
    outs, lses = outs.float(), lses.float()
    lse = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - lse.masked_fill(lse == -torch.inf, 0.0))
    outs = outs.masked_fill((lses == -torch.inf).unsqueeze(-1), 0.0)
    return (weights.unsqueeze(-1) * outs).sum(dim=0), lse
