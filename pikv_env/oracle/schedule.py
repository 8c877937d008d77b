"""A feasible schedule: every block in turn takes its cheapest way within the room that the others leave it.

It begins with everything dropped as soon as may be, which is feasible, and every change keeps it so. Prices of the
relaxation, at first, keep what gains little from taking the room of what gains more; at last they are nothing, so that
room that is left is used.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pikv_env.oracle.costs import held_bytes
from pikv_env.oracle.packing import least_paths, repack
from pikv_env.oracle.problem import DEMOTE, EVICT, FRESH, GONE, SEAL, TOP, USE, Paths, Problem
from pikv_env.oracle.relaxation import Relaxation
from pikv_env.oracle.space import space_of
from pikv_runtime.ledger.state import F8, I8


class Chains:
    """Which uses of blocks belong to which visit, shallow first, and how many of them in a row are found."""

    def __init__(self, problem: Problem) -> None:
        p = problem
        stages = np.flatnonzero(p.visit >= 0)
        block = np.searchsorted(p.first, stages, side="right") - 1
        order = np.lexsort((p.depth[block], p.visit[stages]))
        self.stages: I8 = stages[order]
        visits = p.visit[self.stages]
        starts = np.searchsorted(visits, np.arange(len(p.visit_content)))
        self.place = np.full(p.stages, -1, np.int64)
        self.place[self.stages] = np.arange(len(visits)) - starts[visits]
        self.first: I8 = np.append(starts, len(visits)).astype(np.int64)

    def runs(self, found: np.ndarray) -> I8:
        """(V,) uses in a row that are found, where `found` (S,) says which are."""
        runs = np.zeros(len(self.first) - 1, np.int64)
        for v in range(len(runs)):
            hits = found[self.stages[self.first[v] : self.first[v + 1]]]
            runs[v] = len(hits) if hits.all() else int(np.argmin(hits))
        return runs


def present(problem: Problem, paths: Paths) -> np.ndarray:
    """(S,) uses of blocks that were there, whole, before, and went on from there (a visit may compute anew what is
    there, too)."""
    before = np.vstack([paths[:1], paths[:-1]])
    flags = problem.flags[:, None]
    at = np.where((flags & SEAL > 0) & (before == FRESH), TOP, before)
    lower = (paths > at) & (paths < GONE) & (at >= TOP) & (flags & DEMOTE > 0)
    on = (paths == at) | lower | ((paths == GONE) & (flags & EVICT > 0))
    found: np.ndarray = ((before < GONE) & on).all(axis=1) & (problem.flags & USE > 0)
    return found


def with_room(problem: Problem) -> tuple[Problem, Paths]:
    """The problem with caps raised to what dropping everything at once would hold, and that schedule.

    A run without a cap admits more than a cap would; where even dropping everything does not fit, the cap is taken to
    be what that needs. `page_bytes_floor` says how much byte-time this adds, as a share of the cap's.
    """
    paths = np.zeros((problem.stages, problem.layers), np.int8)
    least_paths(problem.first, problem.flags, paths)
    held = held_bytes(problem, paths)
    cap = np.maximum(problem.cap, held)
    seconds = problem.end_s - problem.start_s
    over = float(((cap - problem.cap) * seconds).sum() / (problem.cap * seconds).sum())
    return replace(problem, cap=cap, page_bytes_floor=over), paths


class Packer:
    """Schedules that are improved block by block.

    Args:
        problem: With room for `paths`.
        paths: A feasible schedule to begin with, (S, L); changed in place.
        relaxation: Costs.
    """

    def __init__(self, problem: Problem, paths: Paths, relaxation: Relaxation) -> None:
        self.problem, self.paths, self.relaxation = problem, paths, relaxation
        self.chains = Chains(problem)
        self.runs = self.chains.runs(present(problem, paths))
        self.space = space_of(problem.cap - held_bytes(problem, paths))

    def sweep(self, prices: F8, order: I8) -> int:
        """Let every block in `order` choose anew at `prices` (G, T). Returns how many changed."""
        p, r = self.problem, self.relaxation
        hold = np.ascontiguousarray(r._sums(prices, p.t1_s) - r._sums(prices, p.t0_s))
        return repack(
            order, p.first, p.home, p.flags, p.owner, p.begin, p.end, p.visit, self.chains.place, self.runs, r.base,
            p.state_bytes, hold, r.miss, r.encode, r.move, self.space, self.paths,
        )  # fmt: skip

    def order(self, gain: F8) -> I8:
        """Blocks whose chain gains most first; a chain's blocks by depth, so that children find their parents."""
        chains, inverse = np.unique(self.problem.chain, return_inverse=True)
        best = np.full(len(chains), -np.inf)
        np.maximum.at(best, inverse, gain)
        return np.lexsort((self.problem.depth, inverse, -best[inverse])).astype(np.int64)


def gains(problem: Problem, relaxation: Relaxation, least: Paths, relaxed: Paths) -> F8:
    """(B,) what a block saves over dropping it at once, per byte-second that it takes more."""
    states = np.arange(problem.layers)
    rows = np.arange(problem.stages)[:, None]
    saved = (relaxation.base[rows, states, least] - relaxation.base[rows, states, relaxed]).sum(axis=1)
    missed = relaxation.miss * (~present(problem, least)).astype(float)
    missed -= relaxation.miss * (~present(problem, relaxed)).astype(float)
    more = (problem.state_bytes[relaxed] - problem.state_bytes[least]).sum(axis=1) * (problem.t1_s - problem.t0_s)
    block = np.repeat(np.arange(len(problem.depth)), np.diff(problem.first))
    total = np.bincount(block, saved + missed, len(problem.depth))
    size = np.bincount(block, more, len(problem.depth))
    return np.asarray(total / np.maximum(size, 1.0), np.float64)
