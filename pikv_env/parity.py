"""Sim to live, level A: on the model clock, fed the same signals, engine and simulator are identical throughout.

Level B, the wall clock, is in `level_b.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pikv_env.pool import WorkloadPool
from pikv_env.runtime_env import RuntimeEnv
from pikv_env.trace_env import TraceEnv
from pikv_runtime import ledger as L
from pikv_runtime.block_rules import orders_of
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
        self.policies: tuple[Policy, Policy] = make_policy(spec), make_policy(spec)
        self.trace.batch.set_orders(0, orders_of(self.policies[0], pool.config.runtime.block_rule))
        self.state, self.engine.policy = self.trace.batch.state, self.policies[1]
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
