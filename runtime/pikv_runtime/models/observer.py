"""Observations: attention mass, router scores and predicted gate of the decode rows that are due."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_runtime.cache import CentroidTable, Shadows
from pikv_runtime.models.choice import router_scores
from pikv_runtime.models.plan import Ask, OwnerBatch
from pikv_runtime.models.reading import Answer, key_scores
from pikv_runtime.models.segments import CacheView, Observation

F4 = NDArray[np.float32]


class Observer:
    """Collects, layer by layer, what the observed rows of the local batches attended to."""

    def __init__(
        self,
        batches: Sequence[OwnerBatch],
        view: CacheView,
        centroids: CentroidTable,
        shadows: Shadows,
        experts: int,
        page_tokens: int,
        scale: float,
    ) -> None:
        self._view, self._centroids, self._shadows = view, centroids, shadows
        self._page_tokens, self._scale = page_tokens, scale
        layers, pages = view.page_live.shape[2], view.page_block.shape[1]
        self.observations = {
            segment.slot: Observation(
                segment.slot,
                mass=np.zeros((layers, pages), np.float32),
                score=np.zeros((layers, pages), np.float32),
                gate=np.zeros((layers, experts), np.float32),
            )
            for batch in batches
            for segment in batch.decode
            if segment.observe
        }

    @staticmethod
    def due(batch: OwnerBatch) -> bool:
        """Whether any row of a batch is observed."""
        return any(segment.observe for segment in batch.decode)

    def note_scores(self, batch: OwnerBatch, layer: int, q: Tensor, gate: Tensor, scores: F4 | None) -> None:
        """Record router scores and predicted gate.

        Args:
            batch: A local batch.
            layer: Layer index.
            q: (rows or more, H_q, D).
            gate: (rows, E) predicted gate distribution.
            scores: (rows, P) by which read sets were chosen; None in exact reading, which asks no router.
        """
        rows = np.flatnonzero([segment.observe for segment in batch.decode])
        index = torch.from_numpy(rows)
        if scores is None:
            view, table = self._view, self._centroids
            scored = router_scores(batch, layer, view, table, rows, q[index], gate[index], opinion=True)
        else:
            scored = scores[rows]
        for row, score, distribution in zip(rows, scored, gate[index].float().cpu().numpy(), strict=True):
            seen = self.observations[batch.decode[row].slot]
            seen.score[layer, : len(score)] = score
            seen.gate[layer] = distribution

    def note_mass(
        self, batch: OwnerBatch, layer: int, q: Tensor, lse: Tensor, parts: Sequence[tuple[Ask, Answer]]
    ) -> None:
        """Record attention mass, after the merge that gave `lse` (tokens, H_q), before a learned sink takes its share:
        mass is what KV gets among itself, so that what is lost is lost of that."""
        for row, segment in enumerate(batch.decode):
            if segment.observe and segment.audited:
                keys = self._shadows.keys(segment.slot, layer, segment.end)
                window = batch.window(layer)
                first = max(0, segment.end - window) if window else 0
                mass = exact_mass(q[row], keys, self._page_tokens, self._scale, first)
                self.observations[segment.slot].mass[layer, : len(mass)] = mass
        for ask, part in parts:
            for i, position in enumerate(ask.observed):
                row = int(ask.rows[position])
                mass = torch.exp(part.page_lse[i] - lse[row]).mean(1).cpu().numpy()  # pages of other parts: exp(-inf)
                self.observations[batch.decode[row].slot].mass[layer, : len(mass)] += mass


def exact_mass(q: Tensor, keys: Tensor, page_tokens: int, scale: float, first: int = 0) -> F4:
    """Attention mass per page (P,) of one query (H_q, D) over keys (tokens, H_kv, D) from position `first` on, averaged
    over heads."""
    scores = key_scores(q, keys, scale)
    scores[:first] = -torch.inf
    share = torch.softmax(scores, dim=0).mean(1)
    padded = torch.nn.functional.pad(share, (0, -len(share) % page_tokens))
    result: F4 = padded.view(-1, page_tokens).sum(1).cpu().numpy()
    return result
