"""The oracle's brackets over families and pressures, beside what was really played."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pikv_agents.rollout import EVALUATION_SEEDS, Episode, Job, Suite, run_jobs
from pikv_agents.row_file import RowFile
from pikv_env.batch import TraceBatch
from pikv_env.config import EnvConfig
from pikv_env.oracle import Effort, Played, bracket, free_bound, played_bracket, reference_timeline
from pikv_env.pool import WorkloadPool
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.controllers import make_policy
from pikv_runtime.objective import LAMBDA1, LAMBDA2

ONLINE = (
    "capped_exact/lru",
    "lazy/h2o",
    "pressure_proportional/lru",
    "static:ratio=1.69/lru",
    "load_proportional/h2o",
    "lazy/h2o+arc",
    "lazy/h2o+s3fifo",
)
OFFLINE = ("lazy/h2o+belady", "lazy/clairvoyant+belady", "capped_exact/lru+belady")
PLAYED = ONLINE + OFFLINE
"""Policies that are played on the ledger for comparison; the last three order by the future."""
LAMBDAS = (LAMBDA1, LAMBDA2)
QUICK = Effort(rounds=(10, 10), sweeps=1)
"""For a first look: wider brackets."""


class BoundError(AssertionError):
    """A policy was played below the lower bound of its own timeline: the bound, or the model, is wrong."""


def study(
    config: EnvConfig,
    families: Sequence[str],
    pressures: Sequence[float],
    library: TraceLibrary,
    *,
    seed: int = 0,
    effort: Effort | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """One row for each family and pressure; `keep` is given each when it is done.

    Everybody is audited, so that what policies lose is no matter of lot. A row has the bracket on U's timeline, the
    bound with admission free, J of every policy of `PLAYED`, and the bracket on the timeline of the best of them.

    Raises:
        BoundError: that policy's J lies below its own timeline's lower bound.
        ValueError: the machine has a host tier.
    """
    rows = []
    for family in families:
        pool = WorkloadPool(library, _of_one(config, family, pressures), EVALUATION_SEEDS + seed)
        timeline = reference_timeline(pool, 0)
        batch = TraceBatch(library, pool.config, len(PLAYED), 0, pool)
        for pressure in pressures:
            began = time.perf_counter()
            found = bracket(pool, 0, pressure, LAMBDAS, timeline=timeline, effort=effort)
            played = run_jobs(batch, [Job(make_policy(spec), 0, pressure) for spec in PLAYED], LAMBDAS)
            scores = {spec: one.score.J for spec, one in zip(PLAYED, played, strict=True)}
            best = min(scores, key=lambda spec: scores[spec])
            own = checked(played_bracket(pool, 0, pressure, make_policy(best), LAMBDAS, effort), best)
            row = {
                "profile": config.profile,
                "family": family,
                "pressure": pressure,
                "pressure_reached": played[0].counters["pressure_reached"],
                **found.to_json(),
                "free_bound": free_bound(pool, 0, pressure, LAMBDAS),
                "played": scores[best],
                "played_policy": best,
                "policies": scores,
                "own": {**own.bracket.to_json(), "J": own.score.J, "above": own.above},
                "row_seconds": time.perf_counter() - began,
            }
            rows.append(row)
            keep(row)
    return rows


def _of_one(config: EnvConfig, family: str, pressures: Sequence[float]) -> EnvConfig:
    """`config` for one workload of `family`, everybody audited."""
    runtime = replace(config.runtime, audit_share=1.0)
    axis = (min(pressures), max(pressures))
    return replace(config, families=(family,), workloads=1, pressure=axis, runtime=runtime)


def checked(played: Played, spec: str) -> Played:
    """`played`, unless it lies below its own bound."""
    lower = played.bracket.lower
    if lower > played.score.J:
        raise BoundError(f"{spec}: J {played.score.J:.4f} is below the bound {lower:.4f} of its own timeline")
    return played


def line(row: Mapping[str, Any]) -> str:
    """A row in words."""
    own = row["own"]
    return (
        f"{row['profile']} {row['family']} pressure {row['pressure']:g}: {row['lower']:.3f} to {row['upper']:.3f} "
        f"({row['width']:.1%}); {row['played_policy']} {row['played']:.3f}, on its own timeline {own['lower']:.3f} to "
        f"{own['upper']:.3f} ({own['width']:.1%}); free {row['free_bound']:.3f}; {row['row_seconds']:.0f} s"
    )


def add_oracle(
    suite: Suite,
    rows: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    effort: Effort | None = None,
    file: RowFile | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Give every row of a headroom table its `oracle`: see `bracket_of`; admissions are those of `static_tuned`.

    What `file` has is not searched again.
    """
    for row in rows:
        cell = {name: row[name] for name in ("family", "pressure")}
        wanted = {"kind": "oracle", **cell}
        kept = [one for one in (file.rows if file else []) if wanted.items() <= one.items()]
        if not kept:
            note(f"oracle: {row['family']} at pressure {row['pressure']:g}")
            episodes = [Episode(row["family"], seed, row["pressure"]) for seed in seeds]
            kept = [wanted | bracket_of(suite, episodes, row["static_tuned"], effort)]
            if file:
                file.add(kept[0])
        row["oracle"] = {name: value for name, value in kept[0].items() if name not in wanted}


def bracket_of(
    suite: Suite, episodes: Sequence[Episode], specs: Sequence[str], effort: Effort | None = None
) -> dict[str, Any]:
    """Brackets of episodes, admissions and clock of each being those of one policy's run.

    Args:
        suite: Workloads.
        episodes: At least one.
        specs: A heuristic for every episode.
        effort: How long to search.

    Returns:
        `relaxation` and `feasible` (means of the lower bounds and of the feasible schedules' J), `width`
        ((feasible - relaxation) / feasible), and by episode `lower`, `upper`, `timelines` (whose admissions).
    """
    found = []
    for episode, spec in zip(episodes, specs, strict=True):
        pool = suite.pool(episode.family, episode.seed)
        found.append(played_bracket(pool, 0, episode.pressure, make_policy(spec), suite.lambdas, effort).bracket)
    relaxation, feasible = (float(np.mean([getattr(one, end) for one in found])) for end in ("lower", "upper"))
    return {
        "relaxation": relaxation,
        "feasible": feasible,
        "width": (feasible - relaxation) / feasible,
        "timelines": list(specs),
        "lower": [one.lower for one in found],
        "upper": [one.upper for one in found],
    }
