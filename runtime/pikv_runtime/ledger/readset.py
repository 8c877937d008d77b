"""Which pages a query reads: one rule for the live runtime and for the trace environment."""

from __future__ import annotations

import numpy as np

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
    choose(score, candidate, ghost, bias, fan_out, 0, pages, read, wished, np.empty(pages), np.empty(pages, np.int64))
    return read, wished


@jit
def _quota(fan_out: float, pages: int) -> int:
    """How many of `pages` are read, or wished for."""
    return min(pages, int(np.ceil(fan_out * pages - 1e-9)))


@jit
def takes_all(candidate: I1, ghost: I1, fan_out: float, first: int, last: int) -> bool:
    """Whether all of pages [first, last) are read and wished for, so that scores need not be looked at."""
    resident, gone = 0, 0
    for p in range(first, last):
        resident += candidate[p]
        gone += ghost[p]
    return _quota(fan_out, resident) == resident and _quota(fan_out, resident + gone) == resident + gone


@jit
def choose(
    score: F4, candidate: I1, ghost: I1, bias: F4, fan_out: float, first: int, last: int, read: I1, wished: I1,
    values: F8, ids: I8,
) -> None:  # fmt: skip
    """`select` among pages [first, last), into zeroed `read` and `wished`; `values` and `ids` (P,) are scratch."""
    total, count, resident = 0.0, 0, 0
    for p in range(first, last):
        if candidate[p] == 1 or ghost[p] == 1:
            values[count], ids[count] = score[p], p
            total += values[count]
            resident += candidate[p]
            count += 1
    k, wishes = _quota(fan_out, resident), _quota(fan_out, count)
    if k < resident or wishes < count:
        _normalise(values, ids, count, total / count, bias)
        lowest(values, ids, count, wishes)
    for j in range(wishes):
        wished[ids[j]] = 1
    if resident < count:  # ghosts wish, but are not there to be read: choose again without them
        left = 0
        for j in range(count):
            if candidate[ids[j]] == 1:
                values[left], ids[left] = values[j], ids[j]
                left += 1
        if k < resident:
            lowest(values, ids, resident, k)
    for j in range(k):
        read[ids[j]] = 1


@jit
def _normalise(values: F8, ids: I8, count: int, mean: float, bias: F4) -> None:
    """Turn scores into what is chosen lowest first: minus the normalised score with its bias."""
    spread = 0.0
    for j in range(count):
        spread += (values[j] - mean) * (values[j] - mean)
    scale = 1.0 / np.sqrt(spread / count + 1e-12)
    for j in range(count):
        values[j] = -((values[j] - mean) * scale + bias[ids[j]])


@jit
def lowest(values: F8, ids: I8, count: int, k: int) -> None:
    """Bring the `k` lowest of `count` entries to the front, in no order; equal values go by id (quickselect)."""
    low, high = 0, count - 1
    while low < high and low < k <= high:
        middle = (low + high) >> 1
        pivot, at = values[middle], ids[middle]
        values[middle], ids[middle] = values[high], ids[high]
        values[high], ids[high] = pivot, at
        store = low
        for j in range(low, high):
            value, entry = values[j], ids[j]
            before = value < pivot or (value == pivot and entry < at)
            # Always swapped, and the place moves on or not: no branch that nobody can predict.
            values[j], ids[j] = values[store], ids[store]
            values[store], ids[store] = value, entry
            store += 1 if before else 0
        values[high], ids[high] = values[store], ids[store]
        values[store], ids[store] = pivot, at
        if k <= store:
            high = store - 1
        else:
            low = store + 1
