"""The dynamic programme of one page: its cheapest way down the states, under prices of bytes.

Compiled. Every function works on one (block, layer); drivers for all of them are in `relaxation.py` and `schedule.py`.
"""

from __future__ import annotations

import numpy as np

from pikv_env.oracle.problem import DEMOTE, EVICT, FRESH, GAP, GONE, INT4_RUNG, SEAL, TOP, USE
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F8, I1, I8

FREE, HIT, MISS, EITHER = range(4)
"""What a block's use is told by its chain: as the state says; must be there; is computed anew whatever is there; or
either of the last two, for bounds that do not look at the chain."""


@jit
def cheapest(cost: F8, flags: I1, told: I1, miss: F8, encode: F8, move: F8, came: I1, path: I1) -> float:
    """Cheapest path through n stages, into `path` (n,); infinite where there is none.

    Args:
        cost: (n, 5) of spending a stage in a state; infinite where it may not be.
        flags: (n,) of the stages.
        told: (n,) FREE, HIT, MISS or EITHER, looked at where there is a `USE`.
        miss: (n,) of computing the page anew.
        encode: (n,) of one rung down.
        move: (n,) of sealing, beside the encoding.
        came: (n, 5) scratch.
        path: (n,) out.
    """
    n = cost.shape[0]
    value, after = np.full(5, np.inf), np.empty(5)
    value[FRESH] = cost[0, FRESH]  # somebody computes it: that is no choice
    for s in range(1, n):
        after[:] = np.inf
        for one in range(10):  # every state, found there or computed anew
            state, anew = one >> 1, one & 1
            if value[state] == np.inf:
                continue
            at, paid = state, value[state]
            if flags[s] & USE:
                if anew != _computed(state, told[s], anew):
                    continue
                if anew:
                    at, paid = FRESH, paid + miss[s]
            elif anew:
                continue
            if flags[s] & SEAL and at == FRESH:
                at, paid = TOP, paid + encode[s] + move[s]
            if paid < after[at]:
                after[at], came[s, at] = paid, state
            if flags[s] & DEMOTE and TOP <= at < INT4_RUNG:
                for rung in range(at + 1, GONE):
                    lower = paid + (rung - at) * encode[s]
                    if lower < after[rung]:
                        after[rung], came[s, rung] = lower, state
            if flags[s] & EVICT and paid < after[GONE]:
                after[GONE], came[s, GONE] = paid, state
        for state in range(5):
            value[state] = after[state] + cost[s, state]
    best = 0
    for state in range(1, 5):
        if value[state] < value[best]:
            best = state
    total = value[best]
    if total == np.inf:
        return total
    for s in range(n - 1, 0, -1):
        path[s] = best
        best = came[s, best]
    path[0] = best
    return total


@jit
def _computed(state: int, told: int, anew: int) -> int:
    """Whether a page in `state` is computed anew at its use (-1: it may not be in that state); `anew` where both may
    be."""
    if told == MISS:
        return 1
    if state == GONE:
        return -1 if told == HIT else 1
    return anew if told == EITHER else 0


@jit
def path_cost(cost: F8, flags: I1, told: I1, miss: F8, encode: F8, move: F8, path: I1) -> float:
    """What a path costs under `cheapest`'s rules; infinite if it breaks one."""
    if path[0] != FRESH:
        return np.inf
    total = cost[0, FRESH]
    for s in range(1, cost.shape[0]):
        at = path[s - 1]
        if flags[s] & USE:
            if told[s] == MISS or (at == GONE and told[s] == FREE):
                at = FRESH
                total += miss[s]
            elif at == GONE:
                return np.inf
        if flags[s] & SEAL and at == FRESH:
            at = TOP
            total += encode[s] + move[s]
        if path[s] != at:
            if path[s] == GONE:
                if flags[s] & EVICT == 0:
                    return np.inf
            elif flags[s] & DEMOTE == 0 or path[s] < at or at == FRESH:
                return np.inf
            else:
                total += (path[s] - at) * encode[s]
        total += cost[s, path[s]]
    return total


@jit
def rank_of(state: int, owner: int, home: int) -> int:
    """Where a page lies: fresh pages on their owner's rank, sealed ones at home."""
    return owner if state == FRESH else home


@jit
def relaxed(
    first: I8, home: I1, flags: I1, owner: I1, base: F8, state_bytes: I8, hold: F8, miss: F8, encode: F8, move: F8,
    usage: F8, paths: I1,
) -> float:  # fmt: skip
    """Every page's cheapest path under prices `hold` (G, S) of a byte in a stage: the sum. A miss is shared evenly by
    the layers. Adds bytes to `usage` (G, S) and writes `paths` (S, L)."""
    layers, longest, total = base.shape[1], 0, 0.0
    for b in range(first.shape[0] - 1):
        longest = max(longest, first[b + 1] - first[b])
    cost, came, path = np.empty((longest, 5)), np.empty((longest, 5), np.int8), np.empty(longest, np.int8)
    told = np.full(longest, EITHER, np.int8)
    for b in range(first.shape[0] - 1):
        low, n = first[b], first[b + 1] - first[b]
        for layer in range(layers):
            for s in range(n):
                for state in range(5):
                    rank = rank_of(state, owner[low + s], home[b, layer])
                    cost[s, state] = base[low + s, layer, state] + state_bytes[state] * hold[rank, low + s]
            total += cheapest(
                cost[:n], flags[low : low + n], told, miss[low : low + n], encode[low : low + n],
                move[low : low + n], came, path,
            )  # fmt: skip
            for s in range(n):
                state = path[s]
                paths[low + s, layer] = state
                usage[rank_of(state, owner[low + s], home[b, layer]), low + s] += state_bytes[state]
    return total


__all__ = ["FREE", "GAP", "HIT", "MISS", "cheapest", "path_cost", "rank_of", "relaxed"]
