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
from pikv_runtime.contract import clip_control
from pikv_runtime.controllers import make_policy
from pikv_runtime.ledger.drive import Bank, next_event_s, put_into_force, replay_signals, stage
from pikv_runtime.ledger.state import Ledger
from pikv_runtime.objective import LAMBDA1, LAMBDA2
from pikv_runtime.policy.base import Policy
from pikv_runtime.serving_log import COMPARED


def first_difference(a: Ledger, b: Ledger) -> str | None:
    """Name of the first array in which lane 0 of two ledgers differs, or None; room for requests may differ."""
    count = int(a.num_requests[0])
    for name in COMPARED:
        one, other = (getattr(ledger, name)[0] for ledger in (a, b))
        if name.startswith("req_"):
            one, other = one[:count], other[:count]
        if not np.array_equal(one, other):
            return name
    return None


def _simulated_step(s: Ledger, bank: Bank, end_s: float) -> None:
    """One iteration of the trace environment's loop, as `drive.run_interval` makes it."""
    put_into_force(s, 0)
    if L.plan(s, 0) == 0:
        L.advance(s, 0, max(1e-9, next_event_s(s, 0, end_s) - s.clock_s[0]))
        return
    replay_signals(s, 0, bank)
    L.commit(s, 0, L.price(s, 0))


class Lockstep:
    """The live engine and the simulator side by side, one iteration at a time, compared after each.

    Args:
        pool: prepared workloads.
        spec: a heuristic, of which each side has its own copy.
        pressure, workload: the episode.
        model: of the live engine, by name, by path or loaded.
    """

    def __init__(
        self, pool: WorkloadPool, spec: str, *, pressure: float, model: Any = "embedded", workload: int = 0
    ) -> None:
        options = {"workload": workload, "pressure": pressure, "lambdas": (LAMBDA1, LAMBDA2)}
        self.trace = TraceEnv(pool.library, config=pool.config, pool=pool)
        live = RuntimeEnv(pool.library, config=pool.config, pool=pool, signals="recorded", model=model)
        self.trace.reset(seed=0, options=options)
        live.reset(seed=0, options=options)
        assert live.engine is not None
        self.engine = live.engine
        self.limit_s = pool.config.horizon_s * (1 + pool.config.drain)
        self.state = self.trace.batch.state
        self.policies: tuple[Policy, Policy] = make_policy(spec), make_policy(spec)
        self.iterations = 0

    def run(self) -> str | None:
        """Serve the whole episode. Returns where the two first differ, or None."""
        s = self.state
        while s.unfinished[0] > 0 and s.clock_s[0] < self.limit_s:
            found = self._decide() or self._interval() or self._measure()
            if found is not None:
                return f"iteration {self.iterations}: {found}"
        return None

    def _interval(self) -> str | None:
        s, live = self.state, self.engine.ledger
        end_s = min(float(s.interval_end_s[0]), self.limit_s)
        while s.clock_s[0] < end_s and s.unfinished[0] > 0:
            _simulated_step(s, self.trace.batch.bank, end_s)
            self.engine.step(end_s)
            self.iterations += 1
            found = first_difference(s, live)
            if found is not None:
                return found
        for ledger in (s, live):
            while ledger.interval_end_s[0] <= ledger.clock_s[0]:
                ledger.interval_end_s[0] += ledger.interval_s[0]
        return None

    def _decide(self) -> str | None:
        control, own = self.policies[0].decide(self.trace.telemetry), self.policies[1].decide(self.engine.telemetry())
        for one in (control, own):
            clip_control(one)
        stage(self.state, 0, control.groups, control.globals)
        self.engine.enforce(own)
        same = np.array_equal(control.groups, own.groups) and np.array_equal(control.globals, own.globals)
        return None if same else "control"

    def _measure(self) -> str | None:
        batch, told = self.trace.batch, self.engine.measure()
        L.write_telemetry(self.state, 0, batch.groups[0], batch.globals[0])
        same = np.array_equal(batch.groups[0], told.groups) and np.array_equal(batch.globals[0], told.globals)
        return None if same else "telemetry"


def level_a(
    pool: WorkloadPool, specs: Sequence[str], *, pressure: float, model: Any = "embedded", workload: int = 0
) -> dict[str, Any]:
    """Run every policy in the live engine and in the simulator in lockstep; both must be identical throughout."""
    rows = []
    for spec in specs:
        pair = Lockstep(pool, spec, pressure=pressure, model=model, workload=workload)
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

    lambdas = (LAMBDA1, LAMBDA2)
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
        "kendall_tau": float(2 * np.mean(agree) - 1) if pairs else None,
        "kendall_tau_all": float(kendalltau(trace["J"], mean["J"]).statistic) if len(rows) > 1 else None,
        "pairs": len(pairs),
        "rows": rows,
    }


def _simulate(pool: WorkloadPool, spec: str, pressure: float, workload: int) -> dict[str, float]:
    env = TraceEnv(pool.library, config=pool.config, pool=pool)
    env.reset(seed=0, options={"workload": workload, "pressure": pressure, "lambdas": (LAMBDA1, LAMBDA2)})
    policy, done = make_policy(spec), False
    while not done:
        _, _, done, _, info = env.step_control(policy.decide(env.telemetry))
    cost = info["episode_cost"]
    hits = cost["hit_tokens"] / max(1, cost["prompt_tokens"])
    return {k: float(cost[k]) for k in ("J", "latency", "memory", "loss")} | {"hit_rate": float(hits)}
