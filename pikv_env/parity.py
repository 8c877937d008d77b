"""Sim to live. Level A: model clock and recorded signals: identical at every iteration. Level B: wall clock."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from pikv_env.live import run_live
from pikv_env.pool import WorkloadPool
from pikv_env.runtime_env import RuntimeEnv
from pikv_env.trace_env import TraceEnv
from pikv_runtime import ledger as L
from pikv_runtime.controllers import make_policy
from pikv_runtime.engine import Engine
from pikv_runtime.ledger.drive import Bank, enforce, next_event_s, replay_signals
from pikv_runtime.ledger.state import Ledger

# What must agree after every iteration: bytes, hits, victims (who holds which page in which codec), clocks.
COMPARED = (
    "clock_s", "tally", "bytes_rank", "cached_bytes", "slot_request", "slot_tokens", "page_block", "page_live",
    "page_ghost", "page_mass", "block_hash", "block_codec", "block_rank", "block_tag", "req_status", "free_count",
)  # fmt: skip


def first_difference(a: Ledger, b: Ledger) -> str | None:
    """Name of the first array in which lane 0 of two ledgers differs, or None."""
    for name in COMPARED:
        if not np.array_equal(getattr(a, name)[0], getattr(b, name)[0]):
            return name
    return None


def _simulated_step(s: Ledger, bank: Bank, end_s: float) -> None:
    """One iteration of the trace environment's loop, as `drive.run_interval` makes it."""
    if L.plan(s, 0) == 0:
        L.advance(s, 0, max(1e-9, next_event_s(s, 0, end_s) - s.clock_s[0]))
        return
    replay_signals(s, 0, bank)
    L.commit(s, 0, L.price(s, 0))


class _Lockstep:
    """The live engine and the simulator side by side, one iteration at a time, compared after each."""

    def __init__(self, trace: TraceEnv, engine: Engine, spec: str, limit_s: float) -> None:
        self.trace, self.engine, self.limit_s = trace, engine, limit_s
        self.state = trace.batch.state
        self.policies = make_policy(spec), make_policy(spec)
        self.iterations = 0

    def run(self) -> str | None:
        """Serve the whole episode. Returns where the two first differ, or None."""
        s, live = self.state, self.engine.ledger
        while s.unfinished[0] > 0 and s.clock_s[0] < self.limit_s:
            found = self._decide()
            end_s = min(float(s.interval_end_s[0]), self.limit_s)
            while found is None and s.clock_s[0] < end_s and s.unfinished[0] > 0:
                _simulated_step(s, self.trace.batch.bank, end_s)
                self.engine.step(end_s)
                self.iterations += 1
                found = first_difference(s, live)
            if found is not None:
                return f"iteration {self.iterations}: {found}"
            for ledger in (s, live):
                while ledger.interval_end_s[0] <= ledger.clock_s[0]:
                    ledger.interval_end_s[0] += ledger.interval_s[0]
            self._measure()
        return None

    def _decide(self) -> str | None:
        control = self.policies[0].decide(self.trace.telemetry)
        own = self.policies[1].decide(self.engine.telemetry())
        same = np.array_equal(control.groups, own.groups) and np.array_equal(control.globals, own.globals)
        self.state.control_groups[0], self.state.control_globals[0] = control.groups, control.globals
        enforce(self.state, 0)
        self.engine.enforce(own)
        return None if same else "control"

    def _measure(self) -> None:
        batch = self.trace.batch
        L.write_telemetry(self.state, 0, batch.groups[0], batch.globals[0])
        self.engine.measure()


def level_a(
    pool: WorkloadPool, specs: Sequence[str], *, pressure: float, model: Any = "embedded", workload: int = 0
) -> dict[str, Any]:
    """Run every policy in the live engine and in the simulator in lockstep; both must be identical throughout."""
    rows = []
    for spec in specs:
        options = {"workload": workload, "pressure": pressure, "lambdas": (0.25, 10.0)}
        trace = TraceEnv(pool.library, config=pool.config, pool=pool)
        live = RuntimeEnv(pool.library, config=pool.config, pool=pool, signals="recorded", model=model)
        trace.reset(seed=0, options=options)
        live.reset(seed=0, options=options)
        assert live.engine is not None
        pair = _Lockstep(trace, live.engine, spec, pool.config.horizon_s * (1 + pool.config.drain))
        difference = pair.run()
        rows.append({"policy": spec, "iterations": pair.iterations, "first_difference": difference})
    different = [f"{r['policy']}: {r['first_difference']}" for r in rows if r["first_difference"]]
    return {"identical": not different, "first_difference": different[0] if different else None, "rows": rows}


def level_b(
    pool: WorkloadPool,
    specs: Sequence[str],
    *,
    pressure: float,
    repeats: int = 2,
    model: Any = "embedded",
    workload: int = 0,
) -> dict[str, Any]:
    """Measure every policy on the wall clock and compare with the trace environment on the model clock."""
    from scipy.stats import kendalltau

    lambdas = (0.25, 10.0)
    rows: list[dict[str, Any]] = []
    for spec in specs:
        simulated = _simulate(pool, spec, pressure, workload)
        measure = partial(run_live, pool, spec, workload=workload, pressure=pressure, lambdas=lambdas, model=model)
        runs = [measure(clock="wall") for _ in range(repeats)]
        live = {k: [getattr(r, k) for r in runs] for k in ("J", "latency", "memory", "loss", "hit_rate")}
        rows.append({"policy": spec, "trace": simulated, "live": live})
    mean = {k: np.array([np.mean(r["live"][k]) for r in rows]) for k in rows[0]["live"]}
    trace = {k: np.array([r["trace"][k] for r in rows]) for k in mean}
    spread = float(np.median([np.ptp(r["live"]["latency"]) / np.mean(r["live"]["latency"]) for r in rows]))
    noise = np.array([np.std(r["live"]["J"], ddof=1) if repeats > 1 else 0.0 for r in rows])
    pairs = [(i, j) for i, j in itertools.combinations(range(len(rows)), 2)
             if abs(mean["J"][i] - mean["J"][j]) > 2 * max(noise[i], noise[j])]  # fmt: skip
    agree = [np.sign(trace["J"][i] - trace["J"][j]) == np.sign(mean["J"][i] - mean["J"][j]) for i, j in pairs]
    return {
        "bytes_error": float(np.median(np.abs(trace["memory"] / mean["memory"] - 1))),
        "hits_error": float(np.median(np.abs(trace["hit_rate"] - mean["hit_rate"]))),
        "latency_median_ape": float(np.median(np.abs(trace["latency"] / mean["latency"] - 1))),
        "run_to_run_spread": spread,
        "fidelity_mae": float(np.mean(np.abs(trace["loss"] - mean["loss"]))),
        "kendall_tau": float(2 * np.mean(agree) - 1) if pairs else float("nan"),
        "kendall_tau_all": float(kendalltau(trace["J"], mean["J"]).statistic) if len(rows) > 1 else float("nan"),
        "pairs": len(pairs),
        "rows": rows,
    }


def _simulate(pool: WorkloadPool, spec: str, pressure: float, workload: int) -> dict[str, float]:
    env = TraceEnv(pool.library, config=pool.config, pool=pool)
    env.reset(seed=0, options={"workload": workload, "pressure": pressure, "lambdas": (0.25, 10.0)})
    policy, done = make_policy(spec), False
    while not done:
        _, _, done, _, info = env.step_control(policy.decide(env.telemetry))
    cost = info["episode_cost"]
    hits = cost["hit_tokens"] / max(1, cost["prompt_tokens"])
    return {k: float(cost[k]) for k in ("J", "latency", "memory", "loss")} | {"hit_rate": float(hits)}
