"""The bracket: a feasible schedule above, a relaxation below, for one workload under one cap on a fixed timeline."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pikv_env.oracle.build import build_problem
from pikv_env.oracle.costs import held_bytes, rank_shares
from pikv_env.oracle.evaluation import Parts, evaluate
from pikv_env.oracle.problem import Paths, Problem
from pikv_env.oracle.relaxation import Dual, Relaxation, ascend, refine
from pikv_env.oracle.schedule import Packer, gains, with_room
from pikv_env.oracle.timeline import Timeline, reference_timeline
from pikv_env.pool import WorkloadPool
from pikv_runtime.ledger.state import F8

COARSE_BINS = 24
"""Prices are found for few long bins first; these are cut where a cap binds."""
LADDER = (16.0, 8.0, 4.0, 2.5, 1.8, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
"""Shares of the relaxation's prices at which blocks choose in turn: what gains most for a byte comes first."""


@dataclass(frozen=True)
class Effort:
    """How long to search."""

    rounds: tuple[int, ...] = (15, 15, 15, 15, 15, 15, 60)
    """Steps of the prices at every grain of time bins, coarse ones first."""
    sweeps: int = 3
    """Times that every block chooses anew where nothing has a price."""

    def __post_init__(self) -> None:
        if not self.rounds or min(self.rounds) < 0:
            raise ValueError(f"rounds={self.rounds}: at least one number, none negative")
        if self.sweeps < 1:
            raise ValueError(f"sweeps={self.sweeps}: must be at least 1")


@dataclass(frozen=True)
class Bracket:
    """Bounds on the least J that any decisions could reach on one timeline."""

    lower: float
    upper: float
    parts: Parts
    """Of the feasible schedule."""
    prices: F8
    """(G, T) of the caps, J per byte-second, that prove `lower`."""
    edges_s: F8
    """(T + 1,)"""
    paths: Paths
    """(S, L) the feasible schedule."""
    seconds: float
    """What finding it took."""
    over_share: float
    """Byte-time by which the caps were raised, as a share of theirs: what the timeline holds whatever is decided."""

    @property
    def width(self) -> float:
        """(upper - lower) / upper."""
        return (self.upper - self.lower) / self.upper

    def to_json(self) -> dict[str, Any]:
        """Numbers alone."""
        return {
            "lower": self.lower,
            "upper": self.upper,
            "width": self.width,
            "latency": self.parts.latency,
            "memory": self.parts.memory,
            "loss": self.parts.loss,
            "kept_blocks": self.parts.kept_blocks,
            "missed_blocks": self.parts.missed_blocks,
            "cap_binds": float((self.prices > 0).mean()),
            "over_share": self.over_share,
            "seconds": self.seconds,
        }


def bracket(
    pool: WorkloadPool,
    workload: int,
    pressure: float,
    lambdas: tuple[float, float],
    *,
    timeline: Timeline | None = None,
    effort: Effort | None = None,
) -> Bracket:
    """Bracket the clairvoyant optimum of a pool's workload at `pressure`, everybody's admission and clock as in
    `timeline` (by default that of U).

    Args:
        pool: Prepared workloads, without a host tier.
        workload: Number in the pool.
        pressure: Working set over the cap of all ranks; the cap has the environments' floor.
        lambdas: Prices of memory and of lost fidelity.
        timeline: See `reference_timeline` and `played_timeline`.
        effort: How long to search.

    Raises:
        ValueError: the pool has a host tier.
    """
    prepared = pool.prepared[workload]
    cap = max(prepared.floor_bytes, int(prepared.working_set_bytes / pressure / pool.config.ranks))
    timeline = timeline if timeline is not None else reference_timeline(pool, workload)
    return solve(build_problem(pool, workload, timeline, cap, lambdas), effort)


def solve(problem: Problem, effort: Effort | None = None) -> Bracket:
    """Bracket a problem."""
    effort, began = effort or Effort(), time.perf_counter()
    problem, least = with_room(problem)
    relaxation = Relaxation(problem, rank_shares(problem), COARSE_BINS)
    nothing = np.zeros((problem.ranks, COARSE_BINS))
    value, _, relaxed = relaxation.solve(nothing)
    gain = gains(problem, relaxation, least, relaxed)
    paths, parts = pack(problem, relaxation, least, [nothing], gain, effort.sweeps)
    if problem.ranks > 1:  # what the slowest rank is shows only with a schedule
        relaxation = Relaxation(problem, rank_shares(problem, parts.attention_s), COARSE_BINS)
        paths, parts = better((paths, parts), pack(problem, relaxation, paths, [nothing], gain, effort.sweeps))
    dual = Dual(value, nothing, relaxation.edges_s, relaxed)
    held = held_bytes(problem, relaxed).astype(np.float64)
    last = len(effort.rounds) - 1
    for grain, rounds in enumerate(effort.rounds):
        prices, scale = refine(relaxation, dual, held), min(1.0, 2.0 * dual.scale)
        dual, held = ascend(relaxation, prices, parts.total, rounds, scale)
        if dual.prices.any() and grain in (last // 2, last):  # a better schedule tells the search how far to go
            found = pack(problem, relaxation, least, [share * dual.prices for share in LADDER], gain, effort.sweeps)
            paths, parts = better((paths, parts), found)
    if parts.over_bytes > 0:
        raise AssertionError(f"the schedule is {parts.over_bytes} bytes over a cap")
    seconds = time.perf_counter() - began
    return Bracket(dual.value, parts.total, parts, dual.prices, dual.edges_s, paths, seconds, problem.page_bytes_floor)


def pack(
    problem: Problem, relaxation: Relaxation, start: Paths, ladder: list[F8], gain: F8, sweeps: int
) -> tuple[Paths, Parts]:
    """A feasible schedule from `start`, at each of the prices in `ladder` in turn."""
    packer = Packer(problem, start.copy(), relaxation)
    order = packer.order(gain)
    for prices in ladder:
        for _ in range(1 if prices.any() else sweeps):
            if packer.sweep(prices, order) == 0:
                break
    return packer.paths, evaluate(problem, packer.paths)


def better(one: tuple[Paths, Parts], other: tuple[Paths, Parts]) -> tuple[Paths, Parts]:
    """The schedule that costs less."""
    return other if other[1].total < one[1].total else one
