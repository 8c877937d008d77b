"""Free bytes by iteration, kept as trees: to take some from a span of iterations, and to ask for the least in one, take
steps in the logarithm of the number of iterations.

A node holds the least free bytes of the iterations below it, but for what was added to its ancestors as a whole
(`owed`): a segment tree whose additions stay where they were made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import I8

ENDLESS = 1 << 61
"""Free bytes beyond the last iteration."""


class Space(NamedTuple):
    """Trees of G ranks over n iterations, n a power of two."""

    free: I8  # (G, 2 n)
    owed: I8  # (G, n)


def space_of(free: I8) -> Space:
    """Trees over `free` (G, K)."""
    ranks, count = free.shape
    n = 1 << max(1, (count - 1).bit_length())
    space = Space(np.full((ranks, 2 * n), ENDLESS, np.int64), np.zeros((ranks, n), np.int64))
    space.free[:, n : n + count] = free
    for node in range(n - 1, 0, -1):
        space.free[:, node] = np.minimum(space.free[:, 2 * node], space.free[:, 2 * node + 1])
    return space


@jit
def give(space: Space, rank: int, begin: int, end: int, size: int) -> None:
    """Add `size` free bytes (take them, if negative) in iterations [begin, end)."""
    free, owed = space.free[rank], space.owed[rank]
    n = owed.shape[0]
    left, right = begin + n, end + n
    while left < right:
        if left & 1:
            free[left] += size
            if left < n:
                owed[left] += size
            left += 1
        if right & 1:
            right -= 1
            free[right] += size
            if right < n:
                owed[right] += size
        left >>= 1
        right >>= 1
    for leaf in (begin + n, end - 1 + n):
        node = leaf >> 1
        while node >= 1:
            free[node] = min(free[2 * node], free[2 * node + 1]) + owed[node]
            node >>= 1


@jit
def least_free(space: Space, rank: int, begin: int, end: int) -> int:
    """Least free bytes in iterations [begin, end)."""
    free, owed = space.free[rank], space.owed[rank]
    left, right = begin + owed.shape[0], end - 1 + owed.shape[0]
    low, high = free[left], free[right]
    while left ^ right > 1:  # until they are siblings, or one
        if left & 1 == 0:
            low = min(low, free[left + 1])
        if right & 1:
            high = min(high, free[right - 1])
        left >>= 1
        right >>= 1
        low += owed[left]
        high += owed[right]
    least = min(low, high)
    while left > 1:
        left >>= 1
        least += owed[left]
    return least
