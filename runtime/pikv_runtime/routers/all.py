"""Router `all`: no preference, everything readable is as good as everything else."""

from __future__ import annotations

import torch
from torch import Tensor


def scores(query: Tensor, centroids: Tensor, tags: Tensor, gate: Tensor) -> Tensor:
    """Zeros, (R, P); ties go to the lower page."""
    return torch.zeros(tags.shape, dtype=torch.float32, device=query.device)
