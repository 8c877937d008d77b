"""Which pages a query reads: one rule for the live runtime and for the trace environment."""

from __future__ import annotations

import numpy as np

from pikv_runtime.ledger.heap import heapify, pop
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F4, F8, I1, I8


@jit
def select(score: F4, candidate: I1, ghost: I1, bias: F4, fan_out: float) -> tuple[I1, I1]:
    """Choose the read set of one query in one layer.

    Args:
        score: (P,) router score of every page; only entries of candidates and ghosts are looked at.
        candidate: (P,) 1 where the page is resident and outside the always-on set.
        ghost: (P,) 1 where the page is gone but its centroid is kept.
        bias: (P,) the policy's routing bias of the page's group, added to the normalised score.
        fan_out: share of the candidates that is read.

    Returns:
        `read` (P,): the ceil(fan_out · candidates) best candidates. `wished` (P,): the ceil(fan_out · pages) best of
        candidates and ghosts, what would be read if nothing had gone; a wished ghost is a miss. Ties go to the lower
        page.
    """
    pages = score.shape[0]
    read, wished = np.zeros(pages, np.int8), np.zeros(pages, np.int8)
    values, ids = np.empty(pages, np.float64), np.empty(pages, np.int64)
    total, count, resident = 0.0, 0, 0
    for p in range(pages):
        if candidate[p] == 1 or ghost[p] == 1:
            values[count], ids[count] = score[p], p
            total += values[count]
            resident += candidate[p]
            count += 1
    if count == 0:
        return read, wished
    _normalise(values, ids, count, total / count, bias)
    k = min(resident, int(np.ceil(fan_out * resident - 1e-9)))
    wishes = min(count, int(np.ceil(fan_out * count - 1e-9)))
    heapify(values, ids, count)
    taken = 0
    for seen in range(count):
        if taken == k and seen >= wishes:
            break
        p = pop(values, ids, count - seen)
        if seen < wishes:
            wished[p] = 1
        if candidate[p] == 1 and taken < k:
            read[p] = 1
            taken += 1
    return read, wished


@jit
def _normalise(values: F8, ids: I8, count: int, mean: float, bias: F4) -> None:
    """Turn scores into what the heap hands out lowest first: minus the normalised score with its bias."""
    spread = 0.0
    for j in range(count):
        spread += (values[j] - mean) * (values[j] - mean)
    scale = 1.0 / np.sqrt(spread / count + 1e-12)
    for j in range(count):
        values[j] = -((values[j] - mean) * scale + bias[ids[j]])
