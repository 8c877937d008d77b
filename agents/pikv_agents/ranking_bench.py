"""How long the ledger takes to rank so many candidates by a policy's utility weights: all of them scored and popped."""

from __future__ import annotations

import time

import numpy as np

from pikv_env.speed import REFERENCE, warm_batch
from pikv_runtime.contract import BLOCK_WEIGHTS, PAGE_WEIGHTS
from pikv_runtime.ledger.heap import heapify, heapify_keys, pop, pop_key
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.order import by_group, evictable_pages
from pikv_runtime.ledger.state import I8, Ledger
from pikv_runtime.ledger.utility import block_utility
from pikv_runtime.ledger.victims import MOST_UTILITY, SCALE


@jit
def _rank_pages(s: Ledger, codes: I8, groups: I8, room: I8, times: int) -> int:
    popped = 0
    for _ in range(times):
        values, ordered, start = by_group(s, 0, codes, groups, room)
        for g in range(room.shape[0]):
            heap, named = values[start[g] : start[g + 1]], ordered[start[g] : start[g + 1]]
            heapify(heap, named, named.shape[0])
            for left in range(named.shape[0], 0, -1):
                popped += pop(heap, named, left) & 1
    return popped


@jit
def _rank_blocks(s: Ledger, blocks: I8, keys: I8, times: int) -> int:
    popped = 0
    for _ in range(times):
        for k in range(blocks.shape[0]):
            value = block_utility(s, 0, blocks[k], s.clock_s[0])
            keys[k] = (int((value + MOST_UTILITY) * SCALE) << 32) | blocks[k]
        heapify_keys(keys, keys.shape[0])
        for left in range(keys.shape[0], 0, -1):
            popped += pop_key(keys, left) & 1
    return popped


def ranking_us(candidates: int, repeats: int, times: int = 200) -> tuple[list[float], list[float]]:
    """Microseconds to rank `candidates` pages and as many cached blocks of the reference instance, each `repeats`
    times, with every utility weight in use. Loops are compiled: what calling them costs is shared by `times` runs."""
    batch = warm_batch(REFERENCE, lanes=1, threads=1, steps=1)
    s = batch.state
    s.control_globals[0, PAGE_WEIGHTS] = s.control_globals[0, BLOCK_WEIGHTS] = 0.5
    codes, groups = (array[:candidates].copy() for array in evictable_pages(s, 0))
    blocks = np.flatnonzero(s.block_cached[0] == 1)[:candidates]
    if len(codes) < candidates or len(blocks) < candidates:
        raise RuntimeError(f"{len(codes)} pages and {len(blocks)} blocks can be ranked: wanted {candidates}")
    room = np.bincount(groups, minlength=s.control_groups.shape[1] + 1)
    keys = np.empty(candidates, np.int64)
    found: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for rank, us in ((lambda: _rank_pages(s, codes, groups, room, times), found[0]),
                         (lambda: _rank_blocks(s, blocks, keys, times), found[1])):  # fmt: skip
            start = time.perf_counter()
            rank()
            if repeat > 0:  # the first compiles
                us.append(1e6 * (time.perf_counter() - start) / times)
    batch.close()
    return found
