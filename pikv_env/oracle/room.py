"""States that no feasible schedule can be in: what all other pages must hold anyhow leaves them no room.

Caps are integrated over time bins in the relaxation, so that a short burst that fills a cap by itself would not show in
it. Here every iteration counts: a page may be in a state only if its bytes fit beside the least that every other page
can hold, in all iterations of the stage.
"""

from __future__ import annotations

import numpy as np

from pikv_env.oracle.paths import rank_of
from pikv_env.oracle.problem import DEMOTE, EVICT, FRESH, GONE, INT4_RUNG, SEAL, TOP, USE, Problem
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F8, I1, I4, I8


def forbid(problem: Problem, base: F8) -> float:
    """Set to infinity the costs `base` (S, L, 5) of states for which there is never room; the share of states that
    rules allow and room does not."""
    p = problem
    masks = np.zeros(p.stages, np.int8)
    _reachable(p.first, p.flags, masks)
    steps = np.zeros((p.ranks, len(p.rho) + 1), np.int64)
    _count_least(p.first, p.home, p.owner, p.begin, p.end, p.state_bytes, masks, steps)
    room = np.ascontiguousarray(p.cap - np.cumsum(steps, axis=1)[:, :-1])
    allowed, forbidden = _close(p.first, p.home, p.owner, p.begin, p.end, p.state_bytes, masks, room, base)
    return float(forbidden / max(1, allowed))


@jit
def _reachable(first: I8, flags: I1, masks: I1) -> None:
    """States in which a page may be in every stage, as bits, into `masks` (S,)."""
    for b in range(first.shape[0] - 1):
        mask = 1 << FRESH
        for s in range(first[b], first[b + 1]):
            if s > first[b]:
                if flags[s] & USE:
                    mask |= 1 << FRESH
                    mask &= ~(1 << GONE)
                if flags[s] & SEAL and mask & (1 << FRESH):
                    mask = (mask & ~(1 << FRESH)) | (1 << TOP)
                if flags[s] & DEMOTE:
                    for state in range(TOP, INT4_RUNG):
                        if mask & (1 << state):
                            mask |= 1 << (state + 1)
                if flags[s] & EVICT:
                    mask |= 1 << GONE
            masks[s] = mask


@jit
def _least(mask: int, rank: int, owner: int, home: int, sizes: I8) -> int:
    """Bytes on `rank` of a page in whichever state of `mask` holds least there."""
    least = 1 << 62
    for state in range(5):
        if mask & (1 << state):
            least = min(least, sizes[state] if rank_of(state, owner, home) == rank else 0)
    return least


@jit
def _count_least(
    first: I8, home: I1, owner: I1, begin: I4, end: I4, sizes: I8, masks: I1, steps: I8
) -> None:  # fmt: skip
    """Add the least bytes of every page to `steps` (G, K + 1), whose running sum is what is held at least."""
    for b in range(first.shape[0] - 1):
        for s in range(first[b], first[b + 1]):
            if masks[s] & (1 << GONE):
                continue
            for layer in range(home.shape[1]):
                for rank in range(steps.shape[0]):
                    least = _least(masks[s], rank, owner[s], home[b, layer], sizes)
                    steps[rank, begin[s]] += least
                    steps[rank, end[s]] -= least


@jit
def _close(
    first: I8, home: I1, owner: I1, begin: I4, end: I4, sizes: I8, masks: I1, room: I8, base: F8
) -> tuple[int, int]:
    """Set costs to infinity where `room` (G, K) does not hold a page. Returns states allowed by rules, and closed."""
    allowed, closed = 0, 0
    head = np.empty(room.shape[0], np.int64)
    for b in range(first.shape[0] - 1):
        for s in range(first[b], first[b + 1]):
            for rank in range(room.shape[0]):
                head[rank] = room[rank, begin[s] : end[s]].min()
            for layer in range(home.shape[1]):
                for state in range(5):
                    if masks[s] & (1 << state) == 0 or sizes[state] == 0:
                        continue
                    allowed += 1
                    rank = rank_of(state, owner[s], home[b, layer])
                    if sizes[state] > head[rank] + _least(masks[s], rank, owner[s], home[b, layer], sizes):
                        base[s, layer, state] = np.inf
                        closed += 1
    return allowed, closed
