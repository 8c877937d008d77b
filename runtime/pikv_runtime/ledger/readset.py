"""Which pages a query reads: one rule for the live runtime and for the trace environment."""

from __future__ import annotations

import numpy as np

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F4, I1


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
        `read` (P,): the k = ceil(fan_out · candidates) best candidates. `wished` (P,): the k best of candidates and
        ghosts; a wished ghost is a miss. Ties go to the lower page.
    """
    pages = score.shape[0]
    read = np.zeros(pages, np.int8)
    wished = np.zeros(pages, np.int8)
    total, count, resident = 0.0, 0, 0
    for p in range(pages):
        if candidate[p] == 1 or ghost[p] == 1:
            total += score[p]
            count += 1
            resident += candidate[p]
    if resident == 0:
        return read, wished
    mean = total / count
    spread = 0.0
    for p in range(pages):
        if candidate[p] == 1 or ghost[p] == 1:
            spread += (score[p] - mean) ** 2
    scale = 1.0 / np.sqrt(spread / count + 1e-12)
    value = np.full(pages, -np.inf)
    for p in range(pages):
        if candidate[p] == 1 or ghost[p] == 1:
            value[p] = (score[p] - mean) * scale + bias[p]
    order = np.argsort(-value, kind="mergesort")
    k = min(resident, int(np.ceil(fan_out * resident - 1e-9)))
    taken, seen = 0, 0
    for p in order:
        if candidate[p] == 0 and ghost[p] == 0:
            break
        if seen < k:
            wished[p] = 1
            seen += 1
        if candidate[p] == 1 and taken < k:
            read[p] = 1
            taken += 1
    return read, wished
