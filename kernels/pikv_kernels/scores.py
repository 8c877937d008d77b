"""What a query thinks of pages without reading them, and what a policy thinks of them."""

from __future__ import annotations

import torch
from torch import Tensor

from pikv_kernels.codecs import decode
from pikv_kernels.dispatch import use_triton
from pikv_kernels.payload import PagePayload


def key_summaries(payload: PagePayload, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, lowest and highest key of full pages, per head and channel.

    Args:
        payload: Pages in any codec.
        rows: ``(n,)`` integer.

    Returns:
        Three tensors ``(n, heads, head_dim)`` fp32.
    """
    if use_triton(payload.k):
        from pikv_kernels.triton_scores import triton_key_summaries  # triton may be missing elsewhere

        return triton_key_summaries(payload, rows)
    k, _ = decode(payload.select(rows), torch.float32)
    return k.mean(2), k.amin(2), k.amax(2)


def centroid_scores(query: Tensor, means: Tensor, index: Tensor | None = None) -> Tensor:
    """Dot product of a query with pages' mean keys, averaged over query heads.

    Args:
        query: ``(rows, query_heads, head_dim)`` float, grouped as in `paged_decode_attention`.
        means: ``(pages, kv_heads, head_dim)`` float, or without `index` ``(rows, pages, kv_heads, head_dim)``.
        index: ``(rows, width)`` integer: which of the means each row scores; -1 scores 0.

    Returns:
        ``(rows, width)`` fp32, or ``(rows, pages)``.

    Raises:
        ValueError: Shapes that do not fit together.
    """
    _check(query, means, index)
    if use_triton(query):
        from pikv_kernels.triton_scores import triton_page_scores

        return triton_page_scores(query, means, means, index, bound=False)
    means = means if index is None else means[index.clamp(min=0)]
    rows, query_heads, head_dim = query.shape
    heads = means.shape[2]
    # The mean over heads moves inside: a dot product with the mean query of each KV head's group.
    grouped = query.float().view(rows, heads, query_heads // heads, head_dim).mean(2)
    scores = torch.bmm(means.float().flatten(2), grouped.flatten(1).unsqueeze(2)).squeeze(2) / heads
    return scores if index is None else scores.masked_fill_(index < 0, 0.0)


def bound_scores(query: Tensor, low: Tensor, high: Tensor, index: Tensor | None = None) -> Tensor:
    """Upper bound of a query's dot product with any key of a page (Quest, arXiv 2406.10774), averaged over query heads:
    the sum over channels of the larger of ``q * low`` and ``q * high``.

    Args:
        query: As `centroid_scores`.
        low: Lowest key of each page, shaped as the means of `centroid_scores`.
        high: Highest key of each page.
        index: As `centroid_scores`.

    Returns:
        As `centroid_scores`.

    Raises:
        ValueError: Shapes that do not fit together.
    """
    _check(query, low, index)
    if low.shape != high.shape:
        raise ValueError(f"low {tuple(low.shape)} and high {tuple(high.shape)} must have one shape")
    if use_triton(query):
        from pikv_kernels.triton_scores import triton_page_scores

        return triton_page_scores(query, low, high, index, bound=True)
    if index is not None:
        low, high = low[index.clamp(min=0)], high[index.clamp(min=0)]
    rows, query_heads, head_dim = query.shape
    heads = low.shape[2]
    grouped = query.float().view(rows, heads, query_heads // heads, head_dim)
    # The larger product has the query's sign: a positive channel meets the highest key, a negative one the lowest.
    up, down = grouped.clamp(min=0).mean(2).flatten(1), grouped.clamp(max=0).mean(2).flatten(1)
    scores = torch.bmm(high.float().flatten(2), up.unsqueeze(2)) + torch.bmm(low.float().flatten(2), down.unsqueeze(2))
    scores = scores.squeeze(2) / heads
    return scores if index is None else scores.masked_fill_(index < 0, 0.0)


def page_utility(features: Tensor, weights: Tensor) -> Tensor:
    """Utility of pages: a weighted sum of their features.

    Args:
        features: ``(..., features)`` float.
        weights: ``(features,)`` float.

    Returns:
        ``(...)`` fp32.

    Raises:
        ValueError: As many weights as features are needed.
    """
    if weights.shape != features.shape[-1:]:
        raise ValueError(f"{tuple(weights.shape)} weights do not fit features {tuple(features.shape)}")
    if use_triton(features):
        from pikv_kernels.triton_scores import triton_page_utility

        return triton_page_utility(features, weights)
    return features.float() @ weights.float()


def _check(query: Tensor, means: Tensor, index: Tensor | None) -> None:
    dense = index is None
    fits = query.ndim == 3 and means.ndim == (4 if dense else 3) and query.shape[2] == means.shape[-1]
    if not fits or query.shape[1] % means.shape[-2] or len(query) != len(means if index is None else index):
        shapes = [tuple(x.shape) for x in (query, means) + (() if index is None else (index,))]
        raise ValueError(
            f"query, keys of pages and index of shapes {shapes} must be (rows, query_heads, head_dim), "
            "(rows, pages, kv_heads, head_dim) without an index or (pages, kv_heads, head_dim) with one, "
            "and (rows, width); query_heads a multiple of kv_heads"
        )
