"""Mean keys of pages: what the centroid router scores, resident or not."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class CentroidTable:
    """The mean native key of every full page, by (layer, block slot); every rank holds all of them.

    A query is scored where its request lives, while its pages lie on many ranks, so centroids are shared
    when a page fills. They outlive the page (a ghost keeps its centroid) until the block slot is filled
    again.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, blocks: int, device: torch.device | str = "cpu"
    ) -> None:
        self._layers, self._shape, self._blocks = layers, (kv_heads, head_dim), blocks
        # Half the bytes of fp32 for eight bits of mantissa, when only the order of scores matters.
        self._means = torch.zeros(0, layers, kv_heads, head_dim, dtype=torch.bfloat16, device=device)

    @property
    def nbytes_page(self) -> int:
        """Bytes of one page's centroid."""
        return self._means.element_size() * self._shape[0] * self._shape[1]

    def put(self, blocks: NDArray[np.int32], means: Tensor) -> None:
        """Set the centroids of block slots (n,); `means` is (n, L, H_kv, D)."""
        if len(blocks) == 0:
            return
        self._reach(int(blocks.max()))
        self._means[torch.as_tensor(blocks, dtype=torch.int64)] = means.to(self._means)

    def get(self, layer: int, blocks: NDArray[np.int32]) -> Tensor:
        """Centroids (*blocks.shape, H_kv, D) fp32; zeros for pages never filled and for block slot -1."""
        if self._means.shape[0] == 0 or blocks.size == 0:
            return torch.zeros(*blocks.shape, *self._shape, device=self._means.device)
        self._reach(int(blocks.max()))
        index = torch.as_tensor(np.where(blocks < 0, 0, blocks), dtype=torch.int64)
        means = self._means[index, layer].float()
        means[torch.as_tensor(blocks < 0)] = 0.0
        return means

    def _reach(self, block: int) -> None:
        have = self._means.shape[0]
        if block >= have:
            grown = self._means.new_zeros(min(self._blocks, max(2 * have, block + 1)), *self._means.shape[1:])
            grown[:have] = self._means
            self._means = grown
