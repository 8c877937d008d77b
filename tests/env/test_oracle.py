"""The oracle on workloads: its model against the ledger, its bounds against what is played."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from trace_kit import SMALL, library, write_profile

from pikv_env.builtin import make_config
from pikv_env.oracle import Effort, Timeline, bracket, played_timeline, reference_timeline
from pikv_env.oracle.build import build_problem
from pikv_env.oracle.costs import held_bytes
from pikv_env.oracle.evaluation import evaluate
from pikv_env.oracle.problem import DEMOTE, GAP, INT4_RUNG, SEAL, TOP, Paths, Problem
from pikv_env.oracle.schedule import present, with_room
from pikv_env.oracle.uses import Paging, lay_out
from pikv_env.pool import WorkloadPool
from pikv_runtime.controllers import make_policy

UNCAPPED = 1e-3  # pressure
LAMBDAS = (0.25, 10.0)


@functools.cache
def pool_of(ranks: int, families: tuple[str, ...] = ("code-bursty",), **fields: Any) -> WorkloadPool:
    """A small pool in which everybody is audited, so that F is a large sample."""
    import tempfile
    from pathlib import Path

    profile = write_profile(Path(tempfile.mkdtemp(prefix="pikv-profile-")))
    config = make_config(
        **{**SMALL, "profile": profile, "ranks": ranks, "families": families, "workloads": 1, **fields}
    )
    return WorkloadPool(library(), replace(config, runtime=replace(config.runtime, audit_share=1.0)), 0)


def follow(problem: Problem, int4: bool) -> Paths:
    """The schedule of a policy that drops nothing; `int4`: that demotes all it may at every control interval."""
    paths, grid = np.zeros((problem.stages, problem.layers), np.int8), set(problem.grid_first.tolist())
    for b in range(len(problem.depth)):
        state = 0
        for s in range(problem.first[b], problem.first[b + 1]):
            flags = int(problem.flags[s])
            state = TOP if flags & SEAL and state == 0 else state
            if int4 and flags & DEMOTE and not flags & GAP and problem.begin[s] in grid and state == TOP:
                state = INT4_RUNG
            paths[s] = state
    return paths


def cap_of(pool: WorkloadPool, pressure: float) -> int:
    prepared = pool.prepared[0]
    return max(prepared.floor_bytes, int(prepared.working_set_bytes / pressure / pool.config.ranks))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("spec", "family"), [("capped_exact/lru", "code-bursty"), ("static:ratio=4/lru", "facts-unique")]
)
def test_the_model_agrees_with_the_ledger(ranks: int, spec: str, family: str) -> None:
    pool = pool_of(ranks, (family,), horizon_s=150.0)
    timeline, score = played_timeline(pool, 0, UNCAPPED, make_policy(spec), LAMBDAS)
    # A page is sealed up to 16 steps after it has left the window of 2: as under windows between 2 and 3.
    ends = [_modelled(pool, timeline, window, "ratio" in spec) for window in (2, 3)]
    played = float((timeline.live_bytes * (timeline.end_s - timeline.start_s)).sum())
    for (latency, loss, bytes_), slack in zip(ends, (1.0, -1.0), strict=True):
        assert latency == pytest.approx(score.latency, rel=0.005)
        assert slack * loss >= slack * LAMBDAS[1] * score.loss * (1 - 0.05 * slack)  # the ledger draws one step of 32
        assert slack * bytes_ <= slack * played * (1 + 0.005 * slack)
    assert ends[0][1] / ends[1][1] < 1.25 and ends[1][2] / ends[0][2] < 1.1


def _modelled(pool: WorkloadPool, timeline: Timeline, window: int, int4: bool) -> tuple[float, float, float]:
    """Latency, loss and byte-seconds of running requests."""
    problem = build_problem(pool, 0, timeline, cap_of(pool, UNCAPPED), LAMBDAS, window=window)
    paths = follow(problem, int4)
    parts = evaluate(problem, paths, read="all")
    live = (problem.flags & GAP) == 0
    bytes_ = (problem.state_bytes[paths].sum(axis=1) * (problem.t1_s - problem.t0_s))[live].sum()
    return parts.latency, parts.loss, float(bytes_)


def test_the_reference_timeline_is_that_of_U() -> None:
    pool = pool_of(2)
    timeline, reference = reference_timeline(pool, 0), pool.prepared[0].reference
    assert timeline.latency == pytest.approx(reference.latency, rel=1e-9)
    assert timeline.end_s[-1] == pytest.approx(reference.duration_s)
    tokens = pool.config.runtime.page_tokens
    _, found = lay_out(timeline, pool.prepared[0].workload, Paging(tokens, 1, 1))
    assert found.tolist() == [visit.hits for visit in timeline.visits] and found.sum() > 0


@pytest.mark.parametrize("pressure", [0.05, 0.3])
def test_the_bracket_of_a_workload(pressure: float) -> None:
    pool = pool_of(2, horizon_s=120.0)  # so short an episode has a small working set: these caps are tight enough
    found = bracket(pool, 0, pressure, LAMBDAS)
    assert 0 < found.lower <= found.upper
    assert found.width <= 0.15
    assert found.parts.over_bytes == 0


def test_more_pressure_never_costs_less() -> None:
    pool = pool_of(1, horizon_s=120.0)
    timeline = reference_timeline(pool, 0)
    # M is counted in caps: at an equal price of a byte-second, only the room differs.
    found = [
        bracket(pool, 0, p, (0.25 * cap_of(pool, p) / cap_of(pool, 0.3), 10.0), timeline=timeline) for p in (0.3, 4.0)
    ]
    assert found[0].lower <= found[1].upper


def test_what_is_played_on_a_timeline_is_not_below_the_bound() -> None:
    pool = pool_of(1, horizon_s=120.0)
    for spec in ("capped_exact/lru", "static:ratio=4,fan_out=0.3/h2o"):
        timeline, score = played_timeline(pool, 0, 1.0, make_policy(spec), LAMBDAS)
        found = bracket(pool, 0, 1.0, LAMBDAS, timeline=timeline, effort=Effort(rounds=(20, 20), sweeps=1))
        assert found.lower <= score.J, spec


def test_dropping_everything_fits_and_finds_nothing_in_gaps() -> None:
    pool = pool_of(2)
    problem = build_problem(pool, 0, reference_timeline(pool, 0), 1, LAMBDAS)
    roomy, least = with_room(problem)
    assert (held_bytes(problem, least) <= roomy.cap).all() and roomy.page_bytes_floor > 0
    after_gap = np.flatnonzero((problem.flags[:-1] & GAP) > 0) + 1
    assert not present(problem, least)[after_gap].any()


def test_a_schedule_that_breaks_the_rules_is_refused() -> None:
    pool = pool_of(1)
    problem = build_problem(pool, 0, reference_timeline(pool, 0), cap_of(pool, 1.0), LAMBDAS)
    paths = follow(problem, int4=False)
    paths[problem.first[0]] = INT4_RUNG
    with pytest.raises(ValueError, match="is not allowed"):
        evaluate(problem, paths)


def test_a_host_tier_is_refused() -> None:
    pool = pool_of(1, host=1.0)
    with pytest.raises(ValueError, match="host"):
        bracket(pool, 0, 1.0, LAMBDAS)
