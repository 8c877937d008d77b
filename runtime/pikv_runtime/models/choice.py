"""Which pages a decoding query reads, and what the router thinks of each."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_runtime.cache import CentroidTable
from pikv_runtime.ledger.readset import select
from pikv_runtime.models.plan import OwnerBatch
from pikv_runtime.models.segments import CacheView
from pikv_runtime.routers import ROUTERS

F4 = NDArray[np.float32]
I8 = NDArray[np.int64]
Mask = NDArray[np.bool_]


def read_sets(batch: OwnerBatch, layer: int, view: CacheView, scores: F4 | None) -> Mask:
    """Read set of every decode row, always-on set included, (n, P).

    Args:
        batch: An owner's batch.
        layer: Layer index.
        view: The ledger.
        scores: (n, P) router scores; None reads exactly, everything readable.
    """
    readable = batch.rank_of[layer] >= 0
    if scores is None:
        return readable
    # What a window hides is a candidate too, the last one: the ledger, which knows no windows, counts as we do.
    candidates = (batch.resident[layer] & ~batch.fixed).astype(np.int8)
    read = readable & batch.fixed
    ghosts, bias = _ghosts(batch, layer, view), _bias(batch, layer, view)
    for row in range(len(batch.decode)):
        chosen, _ = select(scores[row], candidates[row], ghosts[row], bias[row], view.fan_out)
        read[row] |= chosen != 0
    return read & readable


def router_scores(
    batch: OwnerBatch,
    layer: int,
    view: CacheView,
    centroids: CentroidTable,
    rows: I8,
    query: Tensor,
    gate: Tensor | None,
    *,
    opinion: bool = False,
) -> F4:
    """Scores of the pages of some decode rows, (rows, P).

    Args:
        batch: An owner's batch.
        layer: Layer index.
        view: The ledger.
        centroids: Mean keys.
        rows: (rows,) decode rows of the batch.
        query: (rows, H_q, D).
        gate: (rows, E) predicted gate distribution, for routers that need it.
        opinion: Score by centroid where the router is `all`, which ranks nothing.
    """
    router = ROUTERS["centroid" if opinion and view.router == "all" else view.router]
    blocks = batch.blocks[rows]
    tags = np.where(blocks >= 0, view.block_tag[blocks, layer], -1)
    scores = router.scores(
        query,
        centroids.get(layer, blocks),
        torch.from_numpy(tags).to(query.device),
        query.new_zeros(len(rows), 1) if gate is None else gate,
    )
    scored = np.ascontiguousarray(scores.cpu().numpy(), np.float32)
    return _hidden_last(scored, batch.resident[layer, rows] & (batch.rank_of[layer, rows] < 0))


def _hidden_last(scores: F4, hidden: Mask) -> F4:
    """Scores (n, P) with those of pages before the layer's window below all others of their row."""
    for row in np.flatnonzero(hidden.any(axis=1)):
        seen = scores[row, ~hidden[row]]
        scores[row, hidden[row]] = seen.min(initial=0.0) - np.ptp(seen) - 1.0 if len(seen) else 0.0
    return scores


def _ghosts(batch: OwnerBatch, layer: int, view: CacheView) -> NDArray[np.int8]:
    slots = np.array([s.slot for s in batch.decode], np.int64)
    ghosts = view.page_ghost[slots, : batch.blocks.shape[1], layer]
    return np.ascontiguousarray(ghosts * ((batch.blocks >= 0) & ~batch.fixed), np.int8)


def _bias(batch: OwnerBatch, layer: int, view: CacheView) -> F4:
    if view.routing_bias is None:
        return np.zeros(batch.blocks.shape, np.float32)
    tags = view.block_tag[batch.blocks, layer]
    known = (batch.blocks >= 0) & (tags >= 0)
    return np.where(known, view.routing_bias[np.where(known, tags, 0), layer], 0.0).astype(np.float32)
