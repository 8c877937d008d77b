"""The guard inside the engine: whatever trips it, the fallback's control is in force in the same interval."""

from __future__ import annotations

import time

import numpy as np
import pytest
from serving_kit import LOSSY, serve, workload

from pikv_runtime.contract import Control, GroupControl
from pikv_runtime.controllers import make_policy
from pikv_runtime.engine import Engine
from pikv_runtime.ledger import Status
from pikv_runtime.policy import Guard, GuardLimits

FALLBACK = "static:ratio=1.5/lru"
PATIENT = {"timeout_us": float("inf"), "veto_rate": 1.0, "fidelity_floor": 0.0, "worst_class_floor": 0.0}


class Scripted:
    """Asks for `spec`, and misbehaves at the decisions `at`."""

    name = "scripted"

    def __init__(self, spec="static:ratio=3/lru", misbehave=None, at=()):
        self.inner, self.misbehave, self.at, self.decision = make_policy(spec), misbehave, at, -1

    def decide(self, telemetry, out=None):
        self.decision += 1
        out = self.inner.decide(telemetry, out)
        if self.decision in self.at:
            self.misbehave(out)
        return out


def ratios(engine):
    """The ratio that each enforced control asks for."""
    shape = Control.zeros(engine.ledger.control_groups.shape[1]).groups.shape
    groups = (np.frombuffer(log, np.float32)[: shape[0] * shape[1]].reshape(shape) for log in engine.control_log)
    return [float(g[:, GroupControl.COMPRESSION_RATIO].mean()) for g in groups]


def guarded(policy, recover_after=3, **limits):
    return Guard(policy, make_policy(FALLBACK), GuardLimits(**{**PATIENT, **limits}, recover_after=recover_after))


def all_served(engine):
    return (engine.ledger.req_status[0, : len(workload().requests)] == Status.DONE).all()


def boom(out):
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("reason", "misbehave", "limits"),
    [
        ("nan", lambda out: out.groups.fill(np.nan), {}),
        ("timeout", lambda out: time.sleep(0.25), {"timeout_us": 200_000.0}),
        ("error", boom, {}),
    ],
)
def test_trouble_in_the_policy_falls_back_in_the_same_interval_and_ends_with_hysteresis(reason, misbehave, limits):
    guard = guarded(Scripted(misbehave=misbehave, at=(4, 5)), **limits)
    engine, _ = serve(guard)
    asked = ratios(engine)
    assert len(asked) >= 10 and all_served(engine)
    # decisions 4 and 5 go wrong; then three clean ones in a row, the last of which counts again
    assert asked[:9] == [3.0] * 4 + [1.5] * 4 + [3.0]
    assert set(asked[9:]) == {3.0}
    assert guard.counters[reason] == 2 and guard.counters["trips"] == 1 and guard.counters["recoveries"] == 1
    assert guard.counters["fallback_decisions"] == 4
    metrics = guard.metrics()
    assert metrics[f"guard/{reason}"] == 2 and metrics["guard/engaged"] == 0
    assert metrics["guard/decisions"] == engine.timers.decisions


@pytest.mark.parametrize(
    ("reason", "limits"),
    [
        ("fidelity", {"fidelity_floor": 0.999}),
        ("worst_class", {"worst_class_floor": 0.999}),
        ("vetoes", {"veto_rate": 0.0}),
    ],
)
def test_what_the_policy_does_to_the_cache_is_told_and_trips(reason, limits):
    """A policy that throws away what it can: the losses and vetoes are the engine's own."""
    guard = guarded(Scripted("static:ratio=4,evict=0.5,fan_out=0.05/lru"), recover_after=1000, **limits)
    engine, _ = serve(guard)
    asked = ratios(engine)
    assert guard.reason == reason and guard.engaged and all_served(engine)
    first = asked.index(1.5)
    assert 0 < first < len(asked) and set(asked[:first]) == {4.0} and set(asked[first:]) == {1.5}
    assert guard.counters["fallback_decisions"] == len(asked) - first


def test_without_those_limits_the_same_policy_decides_to_the_end():
    engine, _ = serve(guarded(Scripted("static:ratio=4,evict=0.5,fan_out=0.05/lru")))
    assert set(ratios(engine)) == {4.0}


class Broken(Engine):
    """Tells nonsense in the intervals 4 and 5."""

    intervals = 0

    def measure(self):
        told = super().measure()
        if self.intervals in (4, 5):
            told.groups[: len(told.groups) // 2] = 1e9
        self.intervals += 1
        return told


def test_telemetry_out_of_range_is_not_shown_to_the_policy():
    policy = Scripted()
    guard = guarded(policy)
    engine, _ = serve(guard, Broken)
    asked = ratios(engine)
    assert asked[:9] == [3.0] * 4 + [1.5] * 4 + [3.0] and all_served(engine)
    assert guard.counters["telemetry"] == 2 and policy.decision == len(asked) - 2 - 1


@pytest.mark.slow
def test_a_policy_that_never_recovers_is_the_fallback():
    bad, _ = serve(guarded(Scripted(misbehave=boom, at=range(10**6))))
    heuristic, _ = serve(make_policy(FALLBACK), config=LOSSY)
    assert bad.control_log == heuristic.control_log
