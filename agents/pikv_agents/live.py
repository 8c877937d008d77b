"""Policies inside the real decode loop: measured rows beside what the trace environment predicts for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pikv_agents.report.schema import Live, LiveRow
from pikv_agents.rollout import Job, run_jobs
from pikv_env.batch import TraceBatch
from pikv_env.builtin import resolve_library
from pikv_env.config import EnvConfig
from pikv_env.live import LiveResult, run_live
from pikv_env.pool import WorkloadPool
from pikv_env.traces.library import TraceLibrary
from pikv_env.workloads.families import check_text
from pikv_runtime.objective import LAMBDA1, LAMBDA2
from pikv_runtime.policy import Watch, load_policy

LAMBDAS = (LAMBDA1, LAMBDA2)


def live_pool(
    library: TraceLibrary | Path | None,
    family: str,
    seed: int,
    ranks: int,
    load: float,
    horizon_s: float,
    profile: str = "cpu-gloo",
    host: float = 0.0,
    control_latency_s: float = 0.0,
) -> WorkloadPool:
    """One workload of `family`, with prompts, its reference U and its working set.

    Raises:
        UnknownNameError: no such family.
        ValueError: the traces hold no prompts of the family's kinds, the family has no text to serve, or a number is
            out of range.
    """
    from pikv_agents.commands.options import late, playable

    traces = resolve_library(library)
    playable((family,), traces)
    check_text((family,))
    config = EnvConfig(
        families=(family,), horizon_s=horizon_s, load=(load, load), workloads=1, ranks=ranks, profile=profile, host=host
    )
    return WorkloadPool(traces, late(config, control_latency_s), seed)


def predicted(pool: WorkloadPool, policy: str, pressure: float) -> LiveRow:
    """What the trace environment says that `policy` costs on the pool's workload."""
    batch = TraceBatch(pool.library, pool.config, 1, 0, pool)
    outcome = run_jobs(batch, [Job(load_policy(policy, guard=False), 0, pressure)], LAMBDAS)[0]
    batch.close()
    return {"policy": policy, "where": "trace", **outcome.costs()}  # type: ignore[typeddict-item]


def measured(result: LiveResult, name: str) -> LiveRow:
    """A live run as a row of the report."""
    return {
        "policy": name,
        "where": "live",
        "J": result.J,
        "latency": result.latency,
        "memory": result.memory,
        "fidelity": result.fidelity,
        "tokens_per_second": result.tokens_per_second,
        "decision_us": result.decision_us,
        "controls_identical_on_ranks": result.controls_identical_on_ranks,
    }


def live_section(
    pool: WorkloadPool,
    policies: Mapping[str, str],
    pressure: float,
    *,
    clock: Literal["wall", "model"] = "wall",
    model: Any = "embedded",
    note: Callable[[str], None] = lambda text: None,
    record: Path | None = None,
    watch: Watch | None = None,
) -> tuple[Live, dict[str, LiveResult]]:
    """Serve the pool's workload under every policy (name -> spec or bundle's folder), trace beside live.

    `record`: folder for the runs' serving logs, one `.npz` by policy. `watch`: what to keep of their decisions; its
    `log` is a folder, in which every policy has its own file.

    Returns:
        The report's section, and the results by policy.
    """
    rows: list[LiveRow] = []
    results: dict[str, LiveResult] = {}
    for name, policy in policies.items():
        note(f"{name} on {pool.config.ranks} rank(s)")
        rows.append(predicted(pool, policy, pressure) | {"policy": name})  # type: ignore[arg-type]
        log = record / f"{log_name(name)}.npz" if record is not None else None
        kept = watch
        if watch is not None and watch.log is not None:
            kept = replace(watch, log=watch.log / f"{log_name(name)}.jsonl")
        results[name] = run_live(
            pool, policy, pressure=pressure, lambdas=LAMBDAS, clock=clock, model=model, record=log, watch=kept
        )
        rows.append(measured(results[name], name))
    return {"family": pool.config.families[0], "ranks": pool.config.ranks, "rows": rows}, results


def log_name(policy: str) -> str:
    """A file name for a policy's spec: whatever is no letter, digit, dot or minus becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", policy).strip("_.")
