"""Compiled inner loops of the feasible schedule: bytes held, and one block after another finding its way."""

from __future__ import annotations

import numpy as np

from pikv_env.oracle.paths import FREE, HIT, MISS, cheapest, path_cost, rank_of
from pikv_env.oracle.problem import EVICT, FRESH, GONE, SEAL, TOP, USE
from pikv_env.oracle.space import Space, give, least_free
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F8, I1, I4, I8


@jit
def least_paths(first: I8, flags: I1, paths: I1) -> None:
    """Everything is dropped as soon as may be, and computed anew at every use, into `paths` (S, L)."""
    for b in range(first.shape[0] - 1):
        state = FRESH
        for s in range(first[b], first[b + 1]):
            if flags[s] & USE and state == GONE:
                state = FRESH
            if flags[s] & SEAL and state == FRESH:
                state = TOP
            if flags[s] & EVICT:
                state = GONE
            for layer in range(paths.shape[1]):
                paths[s, layer] = state


@jit
def _give(
    low: int, n: int, b: int, sign: int, home: I1, owner: I1, begin: I4, end: I4, sizes: I8, paths: I1, space: Space
) -> None:
    """Give back the bytes of block `b`'s stages, or take them (`sign` -1)."""
    for s in range(low, low + n):
        for rank in range(space.free.shape[0]):
            size = 0
            for layer in range(paths.shape[1]):
                state = paths[s, layer]
                if rank_of(state, owner[s], home[b, layer]) == rank:
                    size += sizes[state]
            if size > 0:
                give(space, rank, begin[s], end[s], sign * size)


@jit
def _heads(low: int, n: int, begin: I4, end: I4, space: Space, head: I8) -> None:
    """Least free bytes of every rank in every stage, into `head` (G, n)."""
    for rank in range(head.shape[0]):
        for s in range(n):
            head[rank, s] = least_free(space, rank, begin[low + s], end[low + s])


@jit
def _tell(low: int, n: int, visit: I4, place: I8, runs: I8, told: I1) -> None:
    """What every use of a block is told by its chain, into `told` (n,)."""
    for s in range(n):
        told[s] = FREE
        if visit[low + s] >= 0:
            at, run = place[low + s], runs[visit[low + s]]
            if at > run:
                told[s] = MISS
            elif at < run - 1:
                told[s] = HIT


@jit
def _together(
    b: int, low: int, n: int, home: I1, owner: I1, base: F8, sizes: I8, hold: F8, head: I8, cost: F8
) -> None:  # fmt: skip
    """Costs (n, 5) of a block all of whose layers are in one state; infinite where they do not fit."""
    for s in range(n):
        for state in range(5):
            total = 0.0
            for layer in range(base.shape[1]):
                rank = rank_of(state, owner[low + s], home[b, layer])
                total += base[low + s, layer, state] + sizes[state] * hold[rank, low + s]
            for rank in range(head.shape[0]):
                size = 0
                for layer in range(base.shape[1]):
                    if rank_of(state, owner[low + s], home[b, layer]) == rank:
                        size += sizes[state]
                if size > 0 and size > head[rank, s]:
                    total = np.inf
            cost[s, state] = total


@jit
def _alone(
    b: int, layer: int, low: int, n: int, home: I1, owner: I1, base: F8, sizes: I8, hold: F8, head: I8, cost: F8
) -> None:  # fmt: skip
    """Costs (n, 5) of one layer of a block within `head`."""
    for s in range(n):
        for state in range(5):
            rank = rank_of(state, owner[low + s], home[b, layer])
            fits = sizes[state] == 0 or sizes[state] <= head[rank, s]
            cost[s, state] = base[low + s, layer, state] + sizes[state] * hold[rank, low + s] if fits else np.inf


@jit
def _settle(low: int, n: int, flags: I1, told: I1, path: I1, pattern: I1) -> None:
    """Which uses along a block's path are found and which are not, into `pattern` (n,) as HIT or MISS."""
    for s in range(n):
        pattern[s] = FREE
        if flags[low + s] & USE:
            missed = told[s] == MISS or (s > 0 and path[s - 1] == GONE)
            pattern[s] = MISS if missed else HIT


@jit
def repack(
    order: I8, first: I8, home: I1, flags: I1, owner: I1, begin: I4, end: I4, visit: I4, place: I8, runs: I8, base: F8,
    sizes: I8, hold: F8, miss: F8, encode: F8, move: F8, space: Space, paths: I1,
) -> int:  # fmt: skip
    """Let each block of `order` choose anew: first all layers together, which settles what is found and what is not,
    then every layer for itself. `runs`, `space` and `paths` follow. Returns how many blocks changed."""
    layers, ranks, longest, changed = base.shape[1], hold.shape[0], 0, 0
    for b in range(first.shape[0] - 1):
        longest = max(longest, first[b + 1] - first[b])
    cost, came = np.empty((longest, 5)), np.empty((longest, 5), np.int8)
    told, pattern, path = np.empty(longest, np.int8), np.empty(longest, np.int8), np.empty(longest, np.int8)
    old, new = np.empty((longest, layers), np.int8), np.empty((longest, layers), np.int8)
    head, none = np.empty((ranks, longest), np.int64), np.zeros(longest)
    for j in range(order.shape[0]):
        b = order[j]
        low, n = first[b], first[b + 1] - first[b]
        f, e, m = flags[low : low + n], encode[low : low + n], move[low : low + n]
        _give(low, n, b, 1, home, owner, begin, end, sizes, paths, space)
        _heads(low, n, begin, end, space, head)
        _tell(low, n, visit, place, runs, told)
        old[:n] = paths[low : low + n]
        _together(b, low, n, home, owner, base, sizes, hold, head, cost)
        total = cheapest(cost[:n], f, told, miss[low : low + n], layers * e, layers * m, came, path)
        if total < np.inf:
            _settle(low, n, flags, told, path, pattern)
            for layer in range(layers):
                new[:n, layer] = path[:n]
            total = _layers(b, low, n, home, owner, base, sizes, hold, head, cost, f, pattern, none, e, m, came, path, new)  # noqa: E501  # fmt: skip
            for s in range(n):
                total += miss[low + s] if pattern[s] == MISS else 0.0
            before = _cost_of(b, low, n, home, owner, base, sizes, hold, cost, f, told, miss, none, e, m, old, head)
            if total < before - 1e-15:
                paths[low : low + n] = new[:n]
                changed += 1
                for s in range(n):
                    v = visit[low + s]
                    if v >= 0 and pattern[s] == HIT and place[low + s] == runs[v]:
                        runs[v] += 1
                    elif v >= 0 and pattern[s] == MISS and place[low + s] == runs[v] - 1:
                        runs[v] -= 1
        _give(low, n, b, -1, home, owner, begin, end, sizes, paths, space)
    return changed


@jit
def _layers(
    b: int, low: int, n: int, home: I1, owner: I1, base: F8, sizes: I8, hold: F8, head: I8, cost: F8, flags: I1,
    pattern: I1, none: F8, encode: F8, move: F8, came: I1, path: I1, new: I1,
) -> float:  # fmt: skip
    """Improve `new` (n, L) layer by layer under a settled pattern, within `head` (G, n), which is used up. Returns the
    cost without misses."""
    for layer in range(new.shape[1]):
        for s in range(n):
            head[rank_of(new[s, layer], owner[low + s], home[b, layer]), s] -= sizes[new[s, layer]]
    total = 0.0
    for layer in range(new.shape[1]):
        for s in range(n):
            head[rank_of(new[s, layer], owner[low + s], home[b, layer]), s] += sizes[new[s, layer]]
        _alone(b, layer, low, n, home, owner, base, sizes, hold, head, cost)
        total += cheapest(cost[:n], flags, pattern, none, encode, move, came, path)
        for s in range(n):
            new[s, layer] = path[s]
            head[rank_of(path[s], owner[low + s], home[b, layer]), s] -= sizes[path[s]]
    return total


@jit
def _cost_of(
    b: int, low: int, n: int, home: I1, owner: I1, base: F8, sizes: I8, hold: F8, cost: F8, flags: I1, told: I1,
    miss: F8, none: F8, encode: F8, move: F8, old: I1, head: I8,
) -> float:  # fmt: skip
    """What a block's schedule costs under the same prices; infinite if its chain no longer allows it."""
    whole, total = np.ones(n, np.int8), 0.0
    pattern = np.empty(n, np.int8)
    for s in range(n):
        pattern[s] = FREE
        if flags[s] & USE:
            for layer in range(old.shape[1]):
                if old[s - 1, layer] == GONE:
                    whole[s] = 0
            pattern[s] = MISS if told[s] == MISS or whole[s] == 0 else HIT
            if told[s] == HIT and whole[s] == 0:
                return np.inf
            total += miss[low + s] if pattern[s] == MISS else 0.0
    head[:, :n] = 1 << 62
    for layer in range(old.shape[1]):
        _alone(b, layer, low, n, home, owner, base, sizes, hold, head, cost)
        total += path_cost(cost[:n], flags, pattern, none, encode, move, old[:n, layer])
    return total
