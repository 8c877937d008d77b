"""Blocks cut into stages: the moments at which their state may change, what is allowed then, and who reads."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import Any

import numpy as np

from pikv_env.oracle.problem import DEMOTE, EVICT, FORCED, GAP, SEAL, USE
from pikv_env.oracle.timeline import Timeline
from pikv_env.oracle.uses import Block, Use
from pikv_runtime.ledger.state import F8, I8


class Stages:
    """Collects the stages of blocks.

    Args:
        timeline: Iterations.
        grid: First iteration of every control interval: decisions about sealed pages are taken there.
        miss_s: Seconds of computing the block of a depth.
    """

    def __init__(self, timeline: Timeline, grid: list[int], miss_s: F8) -> None:
        self.timeline, self.grid, self.miss_s = timeline, grid, miss_s
        self.first = [0]
        self.rows: list[tuple[int, int, float, float, int, int, int, float, int]] = []
        self.reads: list[tuple[int, int, int, int]] = []
        self.reads_first = [0]

    def add(self, block: Block) -> None:
        """Append the stages of a block."""
        cuts = self._cuts(block)
        for begin, end in pairwise(cuts):
            active = [use for use in block.uses if use.begin <= begin < use.end]
            if active:
                self._live(block, active, begin, end)
            else:
                self._gap(begin, end)
            self.reads_first.append(len(self.reads))
        self.first.append(len(self.rows))

    def _cuts(self, block: Block) -> list[int]:
        cuts: set[int] = set()
        for use in block.uses:
            cuts.update((use.begin, use.decode, use.leaves, use.end))
            cuts.update(self.grid[bisect_left(self.grid, use.leaves + 1) : bisect_left(self.grid, use.end)])
        return sorted(cuts)

    def _live(self, block: Block, active: list[Use], begin: int, end: int) -> None:
        flags, visit, miss = 0, -1, 0.0
        for use in active:
            if use.begin == begin and use is not block.uses[0]:
                flags |= USE
                visit, miss = (use.visit, float(self.miss_s[block.depth])) if visit < 0 else (visit, miss)
        outside = [use.leaves <= begin for use in active]
        if any(outside):
            flags |= SEAL
        if all(outside):
            flags |= EVICT | (DEMOTE if len(active) == 1 else 0)
        for use in active:
            if begin >= use.decode:
                self.reads.append((use.visit, begin, end, FORCED if begin < use.leaves else 0))
        t0, t1 = self.timeline.start_s[begin], self.timeline.end_s[end - 1]
        owner = self.timeline.visits[active[0].visit].owner
        self.rows.append((begin, end, t0, t1, flags, owner, visit, miss, bisect_left(self.grid, begin + 1)))

    def _gap(self, begin: int, end: int) -> None:
        t0, t1 = self.timeline.end_s[begin - 1], self.timeline.start_s[end]
        flags = GAP | SEAL | DEMOTE | EVICT
        self.rows.append((begin, end, t0, t1, flags, 0, -1, 0.0, bisect_left(self.grid, begin + 1)))

    def arrays(self) -> dict[str, Any]:
        """The stages' part of a `Problem`."""
        columns = list(zip(*self.rows, strict=True)) if self.rows else [()] * 9
        kinds = (np.int32, np.int32, np.float64, np.float64, np.int8, np.int8, np.int32, np.float64, np.int32)
        names = ("begin", "end", "t0_s", "t1_s", "flags", "owner", "visit", "miss_s", "bin")
        found: dict[str, Any] = {n: np.array(c, k) for n, c, k in zip(names, columns, kinds, strict=True)}
        reads = np.array(self.reads, np.int32).reshape(-1, 4).T
        for name, column in zip(("read_visit", "read_begin", "read_end"), reads, strict=False):
            found[name] = np.ascontiguousarray(column)
        found["read_kind"] = reads[3].astype(np.int8)
        found["first"], found["reads_first"] = np.array(self.first, np.int64), np.array(self.reads_first, np.int64)
        found["grid_first"] = np.array(self.grid, np.int64)
        return found


def grid_of(start_s: F8, interval_s: float) -> list[int]:
    """First iterations of the spans of `interval_s` that have any, in order."""
    spans = np.floor(start_s / interval_s).astype(np.int64)
    fresh: I8 = np.flatnonzero(np.diff(spans, prepend=-1))
    return fresh.tolist()
