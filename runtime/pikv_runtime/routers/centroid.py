"""Router `centroid`: query · mean key of the page, averaged over query heads."""

from __future__ import annotations

import torch
from torch import Tensor


def scores(query: Tensor, centroids: Tensor, tags: Tensor, gate: Tensor) -> Tensor:
    """Mean over query heads of the dot product with their KV head's centroid, (R, P)."""
    rows, query_heads, head_dim = query.shape
    kv_heads = centroids.shape[2]
    # The mean over heads moves inside: a dot product with the mean query of each KV head's group.
    grouped = query.float().view(rows, kv_heads, query_heads // kv_heads, head_dim).mean(2)
    return torch.bmm(centroids.float().flatten(2), grouped.flatten(1).unsqueeze(2)).squeeze(2) / kv_heads
