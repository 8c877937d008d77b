"""Router `centroid`: query · mean key of the page, averaged over query heads."""

from __future__ import annotations

from torch import Tensor

from pikv_kernels import centroid_scores


def scores(query: Tensor, centroids: Tensor, tags: Tensor, gate: Tensor) -> Tensor:
    """Mean over query heads of the dot product with their KV head's centroid, (R, P)."""
    return centroid_scores(query, centroids)
