"""Router `gate`: the predicted gate probability of the expert that a page is tagged with (PiKV's own)."""

from __future__ import annotations

from torch import Tensor


def scores(query: Tensor, centroids: Tensor, tags: Tensor, gate: Tensor) -> Tensor:
    """`gate[tag]`, (R, P); 0 for untagged pages."""
    return gate.float().gather(1, tags.long().clamp(min=0)).masked_fill(tags < 0, 0.0)
