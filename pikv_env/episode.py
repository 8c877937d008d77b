"""Options of `reset` and the numbers that `info` carries."""

from __future__ import annotations

import math
from typing import Any

from pikv_env.batch import TraceBatch
from pikv_runtime.costs import CostBreakdown, breakdown
from pikv_runtime.registry import UnknownNameError

OPTIONS = ("workload", "pressure", "lambdas")
PARTS = ("J_interval", "latency", "memory", "loss")


def reset_lane(batch: TraceBatch, i: int, options: dict[str, Any] | None) -> None:
    """Start an episode in lane `i` under `options` (workload, pressure, lambdas); what is absent is drawn.

    Raises:
        ValueError: an unknown option, or one out of range.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    for name in given:
        if name not in OPTIONS:
            raise UnknownNameError("reset option", name, list(OPTIONS))
    count = len(batch.pool.prepared)
    if not 0 <= given.get("workload", 0) < count:
        raise ValueError(f"workload={given['workload']}: the pool has 0..{count - 1}")
    if not 0 < given.get("pressure", 1.0) < math.inf:
        raise ValueError(f"pressure={given['pressure']}: must be positive and finite")
    if "lambdas" in given and not (len(given["lambdas"]) == 2 and min(given["lambdas"]) > 0):
        raise ValueError(f"lambdas={given['lambdas']}: two positive numbers are wanted (memory, fidelity)")
    batch.reset_lane(i, **given)


def reset_info(batch: TraceBatch, i: int) -> dict[str, Any]:
    """What lane `i`'s episode is: workload, pressure and cap."""
    return {
        "workload": int(batch.workload[i]),
        "family": batch.prepared(i).workload.family,
        "pressure": float(batch.pressure[i]),
        "cap_bytes": int(batch.state.cap_bytes[i]),
    }


def costs(batch: TraceBatch, i: int) -> CostBreakdown:
    """Lane `i`'s episode so far in physical units."""
    return breakdown(batch.state, i, batch.prepared(i).reference)


def episode_info(batch: TraceBatch, i: int) -> dict[str, Any]:
    """The finished episode of lane `i`: what it was, and `episode_cost`."""
    score = batch.score(i)
    summary = {
        "J": score.J,
        "latency": score.latency,
        "memory": score.memory,
        "loss": score.loss,
        "lambda1": score.lambda1,
        "lambda2": score.lambda2,
        "steps": int(batch.elapsed[i]),
        **costs(batch, i).counters,
    }
    return {**reset_info(batch, i), "episode_cost": summary}
