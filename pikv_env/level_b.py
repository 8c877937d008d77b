"""Level B: every policy served live, repeat after repeat, beside what the trace environment says of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.live import Clock, run_live
from pikv_env.log_prices import Fitted, fit_log_prices
from pikv_env.log_replay import model_log, replay_log
from pikv_env.outcomes import logged_outcome, outcome
from pikv_env.pool import WorkloadPool
from pikv_env.trace_env import TraceEnv
from pikv_runtime.block_rules import orders_of
from pikv_runtime.objective import LAMBDA1, LAMBDA2
from pikv_runtime.policy import load_policy
from pikv_runtime.serving_log import ServingLog

F8 = NDArray[np.float64]
Note = Callable[[str], None]

LAMBDAS = (LAMBDA1, LAMBDA2)
CALIBRATION = ("lazy/lru", "random:seed=9/lru", "static:ratio=3,fan_out=0.3,evict=0.1/h2o")
"""Served on a workload of their own in every round; prices are fitted to their iterations."""


@dataclass
class Row:
    """One policy on so many ranks: numbers by name, one a round."""

    policy: str
    ranks: int
    live: dict[str, list[float]] = field(default_factory=dict)
    trace: dict[str, list[float]] = field(default_factory=dict)
    """The trace environment, recorded signals, at the prices of the round."""
    modelled: dict[str, list[float]] = field(default_factory=dict)
    """The simulator with the live run's own signals, at the prices of the round: what remains is the prices' error."""
    replay_difference: str = ""
    """Where replaying a live run's log first differed; empty: nowhere, in any round."""

    def add(self, where: str, numbers: dict[str, float]) -> None:
        """Keep one round's numbers."""
        for name, value in numbers.items():
            getattr(self, where).setdefault(name, []).append(value)


@dataclass(frozen=True)
class Measurement:
    """All that level B measured on one number of ranks."""

    rows: list[Row]
    fits: list[Fitted]
    """Price lists, one a round; none on the model clock."""


def measure(
    pool: WorkloadPool,
    calibration: WorkloadPool,
    specs: Sequence[str],
    *,
    pressure: float,
    repeats: int,
    model: Any,
    clock: Clock = "wall",
    logs: Path | None = None,
    seed: int = 0,
    note: Note = lambda text: None,
) -> Measurement:
    """Serve every policy `repeats` times, in rounds, and simulate it.

    In a round every policy is served once, in an order of its own, and between them the calibration's policies on the
    calibration's workload: a machine that is slower for a while is so for all, and for the prices of that round. On the
    model clock, which is deterministic, nothing is calibrated and one round tells all.

    Args:
        pool, calibration: one workload each, on equally many ranks.
        specs: policies that decide alike every time.
        pressure: working set over cap.
        logs: folder that keeps the serving logs; None: they are thrown away.
        note: told of every run.
    """
    rows = [Row(spec, pool.config.ranks) for spec in specs]
    fits, rng = [], np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="pikv-parity-") as scratch:
        folder = logs if logs is not None else Path(scratch)
        for r in range(repeats if clock == "wall" else 1):

            def serve(source: WorkloadPool, spec: str, name: str, r: int = r) -> ServingLog:
                note(f"{source.config.ranks} rank(s), round {r + 1}: {spec}")
                file = folder / f"ranks{source.config.ranks}-round{r}-{name}.npz"
                run_live(source, spec, pressure=pressure, lambdas=LAMBDAS, clock=clock, model=model, record=file)
                return ServingLog.load(file)

            served: dict[int, ServingLog] = {}
            spent: list[ServingLog] = []
            due = np.linspace(0, len(specs), len(CALIBRATION), endpoint=False).astype(int).tolist()
            for step, number in enumerate(rng.permutation(len(specs)).tolist()):
                for k in np.flatnonzero(np.equal(due, step)).tolist() if clock == "wall" else ():
                    spent.append(serve(calibration, CALIBRATION[k], f"calibration{k}"))
                served[number] = serve(pool, specs[number], f"policy{number}")
            prices = pool.prices
            if clock == "wall":
                fits.append(fit_log_prices(spent, pool.prices))
                prices = fits[-1].prices
            for number, row in enumerate(rows):
                _complete(row, served[number], pool, pressure, prices)
    return Measurement(rows, fits)


def _complete(row: Row, log: ServingLog, pool: WorkloadPool, pressure: float, prices: F8) -> None:
    """One round's numbers of a policy: live, replayed, modelled and simulated."""
    found = replay_log(log, load_policy(row.policy, guard=False))
    row.replay_difference = row.replay_difference or found.first_difference
    row.add("live", logged_outcome(log))
    row.add("modelled", model_log(log, load_policy(row.policy, guard=False), prices))
    row.add("trace", simulate(pool, row.policy, pressure, prices))


def simulate(pool: WorkloadPool, policy: str, pressure: float, prices: F8, workload: int = 0) -> dict[str, float]:
    """The episode in the trace environment, at `prices` (len(Price),); U stays the pool's, as in the live run."""
    env = TraceEnv(pool.library, config=pool.config, pool=pool)
    env.reset(seed=0, options={"workload": workload, "pressure": pressure, "lambdas": LAMBDAS})
    env.batch.state.prices[0] = prices
    decides, done = load_policy(policy, guard=False), False
    env.batch.set_orders(0, orders_of(decides, pool.config.runtime.block_rule))
    while not done:
        _, _, done, _, _ = env.step_control(decides.decide(env.telemetry))
    s, reference = env.batch.state, env.batch.prepared(0).reference
    return outcome(s.tally[0], float(s.clock_s[0]), reference, env.batch.cap_total(0), LAMBDAS)
