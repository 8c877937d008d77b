"""What level B's measurements say: errors by policy and quantity, the order of policies, which targets are met."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pikv_env.level_b import Row

TARGETS = {
    "bytes_error": 0.03,
    "hits_error": 0.02,
    "fidelity_mae": 0.02,
    "latency_median_ape": 0.15,
    "kendall_tau": 0.9,
}
"""`bytes_error` and `latency_median_ape` are shares of the live value, `hits_error` and `fidelity_mae` differences of
shares; tau at least, the others at most."""


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Errors and verdicts of the policies of one number of ranks.

    `bytes_error`, `hits_error` and `fidelity_mae` are means of absolute errors over policies, `latency_median_ape` is a
    median. `worst` names, for each, the policy that is furthest off, `within` counts those inside the target. The
    latency error also meets its target inside `run_to_run_spread`: the median over policies of (largest − smallest) /
    mean of the live repeats.
    """
    errors = {name: np.array([policy_errors(row)[name] for row in rows]) for name in TARGETS if name != "kendall_tau"}
    found: dict[str, Any] = {name: float(np.abs(values).mean()) for name, values in errors.items()}
    found["latency_median_ape"] = float(np.median(np.abs(errors["latency_median_ape"])))
    found["run_to_run_spread"] = float(np.median([_spread(row.live["latency"]) for row in rows]))
    found["bias"] = {name: float(np.median(values)) for name, values in errors.items()}
    found["within"] = {name: int((np.abs(values) <= TARGETS[name]).sum()) for name, values in errors.items()}
    worst = {name: int(np.abs(values).argmax()) for name, values in errors.items()}
    found["worst"] = {name: {"policy": rows[i].policy, "error": float(errors[name][i])} for name, i in worst.items()}
    found |= ranking(rows)
    found["replays_identical"] = not any(row.replay_difference for row in rows)
    found["policies"] = len(rows)
    found["verdicts"] = verdicts(found)
    return found


def policy_errors(row: Row) -> dict[str, float]:
    """Signed errors of the trace's means against the live runs' (positive: the trace says more)."""
    trace, live = ({k: float(np.mean(v)) for k, v in source.items()} for source in (row.trace, row.live))
    return {
        "bytes_error": trace["bytes_mean"] / live["bytes_mean"] - 1,
        "hits_error": trace["hit_rate"] - live["hit_rate"],
        "fidelity_mae": trace["loss"] - live["loss"],
        "latency_median_ape": trace["latency"] / live["latency"] - 1,
    }


def causes(row: Row) -> dict[str, float]:
    """What the errors come from, signed. The simulator with the live run's own signals stands between the two: from
    live to there it is the prices' doing, from there to the trace that of recorded signals.

    `iteration_s` is the error of an iteration's mean time, as a share; latency likewise; loss as a difference.
    """
    live, modelled, trace = (
        {k: float(np.mean(v)) for k, v in source.items()} for source in (row.live, row.modelled, row.trace)
    )
    took = [source["busy_s"] / max(1.0, source["iterations"]) for source in (live, modelled)]
    return {
        "iteration_s": took[1] / took[0] - 1,
        "latency_by_prices": modelled["latency"] / live["latency"] - 1,
        "latency_by_signals": trace["latency"] / modelled["latency"] - 1,
        "loss_by_prices": modelled["loss"] - live["loss"],
        "loss_by_signals": trace["loss"] - modelled["loss"],
        "hits_by_prices": modelled["hit_rate"] - live["hit_rate"],
        "hits_by_signals": trace["hit_rate"] - modelled["hit_rate"],
    }


def mean_causes(rows: Sequence[Row]) -> dict[str, float]:
    """Means over policies of the absolute `causes`."""
    found = [causes(row) for row in rows]
    return {name: float(np.mean([abs(one[name]) for one in found])) for name in found[0]}


def ranking(rows: Sequence[Row]) -> dict[str, Any]:
    """Kendall's τ of J between trace and live, over the pairs whose live means differ by more than 2 σ.

    σ of a difference is that of two policies' repeats; a policy whose few repeats happen to agree is given the median
    spread of all.
    """
    mean = np.array([np.mean(row.live["J"]) for row in rows])
    said = np.array([np.mean(row.trace["J"]) for row in rows])
    own = np.array([np.std(row.live["J"], ddof=1) if len(row.live["J"]) > 1 else 0.0 for row in rows])
    sigma = np.maximum(own, np.median(own))
    signs, wrong = [], []
    every = list(itertools.combinations(range(len(rows)), 2))
    for i, j in every:
        if abs(mean[i] - mean[j]) <= 2 * np.hypot(sigma[i], sigma[j]):
            continue
        signs.append(np.sign(said[i] - said[j]) * np.sign(mean[i] - mean[j]))
        if signs[-1] <= 0:
            wrong.append([rows[i].policy, rows[j].policy])
    over_all = [np.sign(said[i] - said[j]) * np.sign(mean[i] - mean[j]) for i, j in every]
    return {
        "kendall_tau": float(np.mean(signs)) if signs else None,
        "kendall_tau_all": float(np.mean(over_all)) if every else None,
        "pairs": len(signs),
        "pairs_all": len(every),
        "pairs_wrong": wrong,
    }


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Which targets are met; no pair that differs is no ranking, and not met."""
    met = {name: found[name] <= TARGETS[name] for name in ("bytes_error", "hits_error", "fidelity_mae")}
    met["latency_median_ape"] = found["latency_median_ape"] <= max(
        TARGETS["latency_median_ape"], found["run_to_run_spread"]
    )
    met["kendall_tau"] = found["kendall_tau"] is not None and found["kendall_tau"] >= TARGETS["kendall_tau"]
    met["replays_identical"] = bool(found["replays_identical"])
    return met


def _spread(values: Sequence[float]) -> float:
    return float(np.ptp(values) / np.mean(values))
