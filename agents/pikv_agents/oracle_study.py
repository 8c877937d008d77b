"""The oracle's brackets over families and pressures, beside what was really played."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pikv_agents.rollout import EVALUATION_SEEDS, Job, run_jobs
from pikv_env.batch import TraceBatch
from pikv_env.builtin import make_config, resolve_library
from pikv_env.oracle import Effort, bracket, free_bound, reference_timeline
from pikv_env.pool import WorkloadPool
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.controllers import make_policy
from pikv_runtime.objective import LAMBDA1, LAMBDA2

PLAYED = ("capped_exact/lru", "lazy/h2o", "pressure_proportional/lru", "static:ratio=1.69/lru", "load_proportional/h2o")
"""Policies that are played on the ledger for comparison."""


@dataclass(frozen=True)
class Setting:
    """What is priced."""

    profile: str = "cpu-gloo"
    geometry: str = "embedded"
    token_scale: int = 1
    ranks: int = 1
    slots: int = 16


def study(
    setting: Setting,
    families: Sequence[str],
    pressures: Sequence[float],
    horizon_s: float,
    *,
    seed: int = 0,
    library: TraceLibrary | None = None,
    effort: Effort | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row for each family and pressure: the bracket with U's timeline fixed, the bound with admission free, and J
    of the best policy of `PLAYED`."""
    rows, library = [], library if library is not None else resolve_library()
    lambdas = (LAMBDA1, LAMBDA2)
    for family in families:
        config = make_config(
            families=family, workloads=1, horizon_s=horizon_s, pressure=(min(pressures), max(pressures)),
            profile=setting.profile, geometry=setting.geometry, token_scale=setting.token_scale, ranks=setting.ranks,
            runtime={"slots": setting.slots},
        )  # fmt: skip
        pool = WorkloadPool(library, config, EVALUATION_SEEDS + seed)
        timeline = reference_timeline(pool, 0)
        batch = TraceBatch(library, config, len(PLAYED), 0, pool)
        for pressure in pressures:
            began = time.perf_counter()
            found = bracket(pool, 0, pressure, lambdas, timeline=timeline, effort=effort)
            played = run_jobs(batch, [Job(make_policy(spec), 0, pressure) for spec in PLAYED], lambdas)
            best = min(range(len(PLAYED)), key=lambda k: played[k].score.J)
            row = {
                "profile": setting.profile,
                "family": family,
                "pressure": pressure,
                "pressure_reached": played[best].counters["pressure_reached"],
                **found.to_json(),
                "free_bound": free_bound(pool, 0, pressure, lambdas),
                "played": played[best].score.J,
                "played_policy": PLAYED[best],
            }
            rows.append(row)
            note(
                f"{setting.profile} {family} pressure {pressure:g}: {found.lower:.3f} to {found.upper:.3f} "
                f"({found.width:.1%}), played {row['played']:.3f}, free {row['free_bound']:.3f}, "
                f"{time.perf_counter() - began:.0f} s"
            )
    return rows
