"""Options of `reset` and the numbers that `info` carries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.batch import TraceBatch
from pikv_env.constraints import Constraints
from pikv_runtime.costs import CostBreakdown, breakdown
from pikv_runtime.objective import weigh
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
    workload, pressure = given.get("workload", 0), given.get("pressure", 1.0)
    if not (isinstance(workload, int | np.integer) and 0 <= workload < count):
        raise ValueError(f"workload={workload!r}: the pool has 0..{count - 1}")
    if not (_is_number(pressure) and 0 < pressure < math.inf):
        raise ValueError(f"pressure={pressure!r}: must be positive and finite")
    if "lambdas" in given and not _are_prices(given["lambdas"]):
        raise ValueError(f"lambdas={given['lambdas']}: two positive numbers are wanted (memory, fidelity)")
    batch.reset_lane(i, **given)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _are_prices(value: Any) -> bool:
    """Whether these are two positive, finite numbers."""
    return np.shape(value) == (2,) and all(_is_number(one) and 0 < one < math.inf for one in value)


def reset_info(batch: TraceBatch, i: int) -> dict[str, Any]:
    """What lane `i`'s episode is: workload, pressure, cap; where another model than the recorded is priced, how."""
    folding = batch.pool.folding
    told = {"what_if": folding.label()} if folding.what_if else {}
    return {
        **told,
        "workload": int(batch.workload[i]),
        "family": batch.prepared(i).workload.family,
        "pressure": float(batch.pressure[i]),
        "pressure_reached": batch.reached_pressure(i),
        "cap_bytes": int(batch.state.cap_bytes[i]),
    }


def interval_columns(batch: TraceBatch) -> dict[str, NDArray[np.float64]]:
    """The last interval of all lanes, (n,) each: the charge, its parts before the λ's, and costs where constrained."""
    charge = weigh(batch.parts, batch.state.lambdas)
    parts = dict(zip(PARTS, (charge, *batch.parts.T.copy()), strict=True))
    return parts | costs_by_name(batch.constraints, batch.costs.T, batch.spending.T)


def interval_info(batch: TraceBatch, i: int) -> dict[str, float]:
    """The same of lane `i`."""
    charge = float(weigh(batch.parts[i], batch.state.lambdas[i]))
    parts = dict(zip(PARTS, (charge, *batch.parts[i].tolist()), strict=True))
    return parts | costs_by_name(batch.constraints, batch.costs[i], batch.spending[i])


def costs_by_name(constraints: Constraints, costs: NDArray[Any], spent: NDArray[Any]) -> dict[str, Any]:
    """`cost`, the sum of `costs` (2, ...), and by constraint `cost_*` and `spent_*`; empty without constraints."""
    if not constraints:
        return {}
    named: dict[str, Any] = {"cost": costs[constraints.columns].sum(axis=0)}
    for name, k in zip(constraints.limits, constraints.columns, strict=True):
        named |= {f"cost_{name}": costs[k].copy(), f"spent_{name}": spent[k].copy()}
    return {name: float(value) if np.ndim(value) == 0 else value for name, value in named.items()}


def total_costs(constraints: Constraints, spent: NDArray[np.float64]) -> dict[str, float]:
    """Costs of an episode in which `spent` (2,) was spent."""
    return costs_by_name(constraints, constraints.costs(np.zeros_like(spent), spent), spent)


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
        **total_costs(batch.constraints, batch.spent[i]),
        **costs(batch, i).counters,
    }
    return {**reset_info(batch, i), "episode_cost": summary}
