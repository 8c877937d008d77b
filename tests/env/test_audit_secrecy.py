"""Holes that the search for reward hacks found, closed since: who is audited, and when, is not to be found out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trace_kit import PRICES_S, make_batch, neutral_controls, write_profile

from pikv_agents.hack_study import LAMBDAS, every_step
from pikv_agents.rollout import Job, Outcome, run_jobs
from pikv_env.batch import TraceBatch
from pikv_env.builtin import make_config
from pikv_env.config import EnvConfig
from pikv_env.hacks import FIXED, HACKS, HackPolicy
from pikv_env.pool import WorkloadPool
from pikv_env.traces import synthetic_library
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.controllers import make_policy
from pikv_runtime.ledger import Status
from pikv_runtime.policy import Policy


class Logged:
    """A policy whose controls are kept."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.log = policy, []

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        self.log.append(self.policy.decide(telemetry, out).copy())
        return self.log[-1]


class Replayed:
    """The controls of a `Logged` policy once more, whatever is told."""

    def __init__(self, log: list[Control]) -> None:
        self.log = iter(log)

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        control = next(self.log)
        out.groups[:], out.globals[:] = control.groups, control.globals
        return out


def play(batch: TraceBatch, policy: Policy, pressure: float) -> Outcome:
    """One episode of the only workload."""
    return run_jobs(batch, [Job(policy, 0, pressure)], LAMBDAS)[0]


def own_batch(
    tmp_path: Path, outputs: tuple[int, int], *, reads: float = 1.0, fine: bool = False, **fields
) -> TraceBatch:
    """A lane over short or long answers, on a machine whose reads cost `reads` times as much."""
    dear = {f"read_{codec}": reads * PRICES_S[f"read_{codec}"] for codec in ("native", "bf16", "int8", "int4")}
    library = synthetic_library(0, ("facts", "code"), contents_per_family=8, output_range=outputs)
    runtime = {"interval_s": fields.pop("interval_s", 2.0), "audit_share": fields.pop("audit_share", 0.25)}
    config = make_config(
        profile=write_profile(tmp_path, **dear),
        families="facts-poisson",
        workloads=1,
        runtime=replace(EnvConfig().runtime, **runtime, observe_tokens=1 if fine else 32),
        **fields,
    )
    library = every_step(library) if fine else library
    return TraceBatch(library, config, 1, 0, WorkloadPool(library, config, 0))


# A far window and an order that heeds no attention: what is observed changes neither victims nor what is at stake.
EVICT = "static:demote=true,r_pressure=4,evict=0.5,window=16/streaming_llm"
LONG, SHORT = (500, 640), (16, 33)  # output tokens: many intervals; one observation, two at most


def test_who_is_audited_is_not_told_while_it_runs() -> None:
    batch = make_batch(2, horizon_s=20.0, runtime=replace(EnvConfig().runtime, interval_s=0.2))
    observed = 0
    for workload in range(len(batch.pool.prepared)):
        for i in range(2):
            batch.reset_lane(i, workload=workload, pressure=0.5)
        batch.state.req_audited[1] = 1 - batch.state.req_audited[0]
        while not (batch.state.req_status[0] == Status.DONE).any():
            np.testing.assert_array_equal(batch.globals[0], batch.globals[1])
            observed = max(observed, int(batch.state.req_observed[0].max()))
            neutral_controls(batch)
            batch.step()
    assert observed > 0


def test_finding_out_whether_a_lone_request_is_audited_does_not_pay(tmp_path: Path) -> None:
    idle = {"load": 0.1, "horizon_s": 400.0, "interval_s": 0.5, "reads": 30.0}
    batch = own_batch(tmp_path, LONG, **idle)
    hack = Logged(HackPolicy(HACKS["audit-lone"], Control.neutral(batch.num_groups)))
    told = play(batch, hack, 0.05)
    honest = play(batch, make_policy(FIXED[0]), 0.05)
    everyone = play(own_batch(tmp_path, LONG, **idle, audit_share=1.0), Replayed(hack.log), 0.05)
    # The same controls, were every request audited: it blurs whom nobody checks.
    assert everyone.score.loss > 0.1
    assert told.score.J >= 0.99 * honest.score.J


def test_what_is_evicted_between_observations_is_lost_as_much(tmp_path: Path) -> None:
    busy = {"load": 0.5, "horizon_s": 60.0, "interval_s": 0.5, "audit_share": 1.0}
    seen, true = (
        play(own_batch(tmp_path, SHORT, fine=fine, **busy), make_policy(EVICT), 1.0).score for fine in (False, True)
    )
    assert seen.latency == pytest.approx(true.latency)
    assert true.loss > 0.01
    assert seen.loss > 0.9 * true.loss
