"""The guard: any trouble makes the heuristic decide in the same call; only clean behaviour ends it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pikv_runtime.contract import Control, GlobalFeature, Telemetry, clip_control
from pikv_runtime.controllers import make_policy
from pikv_runtime.policy import Guard, GuardLimits, Policy, random_telemetry

RATIO = 3.0  # by which the tests tell the policy's controls


class Scripted:
    """A policy that can be told to misbehave."""

    name = "scripted"

    def __init__(self):
        self.misbehave = lambda out: None
        self.seen = 0
        self.inner = make_policy(f"static:ratio={RATIO}")

    def decide(self, telemetry, out=None):
        self.seen += 1
        out = self.inner.decide(telemetry, out)
        self.misbehave(out)
        return out


def credible():
    telemetry = Telemetry.zeros(4)
    telemetry.globals[GlobalFeature.PRESSURE] = 0.5
    return telemetry


def by_policy(control):
    return bool((control.groups[:, 1] == RATIO).all())


@pytest.fixture
def guard():
    return Guard(Scripted(), make_policy("capped_exact"), GuardLimits(recover_after=3, timeout_us=50_000))


def raise_error(out):
    raise RuntimeError("boom")


TROUBLE = {
    "nan": lambda out: out.groups.__setitem__((0, 0), np.nan),
    "timeout": lambda out: time.sleep(0.06),
    "error": raise_error,
}


def test_clean_policy_decides(guard):
    assert isinstance(guard, Policy)
    out = Control.zeros(4)
    assert guard.decide(credible(), out) is out and by_policy(out)
    assert guard.counters["trips"] == 0 and not guard.engaged and guard.name == "scripted"


@pytest.mark.parametrize("reason", TROUBLE)
def test_trouble_in_the_policy_falls_back_in_the_same_call_and_recovers(guard, reason):
    guard.policy.misbehave = TROUBLE[reason]
    out = guard.decide(credible(), Control.zeros(4))
    assert not by_policy(out) and clip_control(out) == 0
    assert guard.engaged and guard.reason == reason and guard.counters[reason] == 1
    guard.policy.misbehave = lambda out: None
    assert [by_policy(guard.decide(credible())) for _ in range(4)] == [False, False, True, True]
    assert guard.counters["recoveries"] == 1 and guard.counters["fallback_decisions"] == 3


def test_a_relapse_starts_the_count_anew(guard):
    script = [1, 0, 0, 1, 0, 0, 0]
    taken = []
    for bad in script:
        guard.policy.misbehave = TROUBLE["nan"] if bad else lambda out: None
        taken.append(by_policy(guard.decide(credible())))
    assert taken == [False] * 6 + [True]
    assert guard.counters["trips"] == 1 and guard.counters["nan"] == 2


@pytest.mark.parametrize(
    "reason,column,value",
    [
        ("vetoes", GlobalFeature.VETOES, 0.9),
        ("fidelity", GlobalFeature.LOSS_CLASS0, 0.25),
        ("worst_class", GlobalFeature.LOSS_CLASS1, 0.5),
        ("vetoes", GlobalFeature.VETOES, np.nan),
        ("fidelity", GlobalFeature.LOSS_CLASS1, np.nan),
    ],
)
def test_trouble_in_telemetry(guard, reason, column, value):
    telemetry = credible()
    telemetry.globals[column] = value
    assert not by_policy(guard.decide(telemetry))
    assert guard.reason == reason
    telemetry.globals[column] = 0.0
    assert [by_policy(guard.decide(telemetry)) for _ in range(3)] == [False, False, True]


def test_fidelity_weighs_classes_by_who_is_running(guard):
    telemetry = credible()
    telemetry.globals[[GlobalFeature.LOSS_CLASS1, GlobalFeature.CLASS1_SHARE]] = 0.25, 0.5
    assert by_policy(guard.decide(telemetry))
    telemetry.globals[GlobalFeature.CLASS1_SHARE] = 1.0
    assert not by_policy(guard.decide(telemetry))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e9])
def test_telemetry_out_of_range(guard, value):
    telemetry = credible()
    telemetry.groups[0, 0] = value  # one value of about a hundred: within the tolerated share
    assert by_policy(guard.decide(telemetry))
    telemetry.groups[0, :8] = value
    seen = guard.policy.seen
    control = guard.decide(telemetry)
    assert not by_policy(control) and guard.reason == "telemetry" and clip_control(control) == 0
    assert guard.policy.seen == seen  # not even asked


def test_random_telemetry_is_in_range(guard):
    telemetry = random_telemetry(6, np.random.default_rng(0))
    telemetry.globals[[GlobalFeature.VETOES, GlobalFeature.LOSS_CLASS0, GlobalFeature.LOSS_CLASS1]] = 0
    assert by_policy(guard.decide(telemetry))


def test_fallback_sees_sane_telemetry():
    guard = Guard(Scripted(), make_policy("pressure_proportional"))
    telemetry = Telemetry(
        np.full_like(Telemetry.zeros(2).groups, np.nan), np.full_like(Telemetry.zeros(2).globals, np.nan)
    )
    control = guard.decide(telemetry)
    assert np.isfinite(control.groups).all() and np.isfinite(control.globals).all()


def test_unwritten_numbers_are_caught(guard):
    class Lazybones:
        def decide(self, telemetry, out=None):
            return out

    guard.decide(credible())
    guard.policy = Lazybones()
    assert not by_policy(guard.decide(credible())) and guard.reason == "nan"


def test_illegal_numbers_are_clipped(guard):
    guard.policy.misbehave = lambda out: out.groups.__setitem__((slice(None), 1), 99.0)
    assert (guard.decide(credible()).groups[:, 1] == 4.0).all()


def test_what_is_wrong_is_said_at_every_decision(guard):
    guard.policy.misbehave = TROUBLE["nan"]
    guard.decide(credible())
    assert guard.trouble == "nan"
    guard.policy.misbehave = lambda out: None
    guard.decide(credible())
    assert guard.trouble is None and guard.engaged and guard.reason == "nan"


def test_a_policy_that_gives_up_waiting_counts_as_late(guard):
    def give_up(out):
        raise TimeoutError

    guard.policy.misbehave = give_up
    assert not by_policy(guard.decide(credible())) and guard.counters["timeout"] == 1


def test_metrics_count_every_reason(guard):
    guard.decide(credible())
    metrics = guard.metrics()
    assert metrics["guard/decisions"] == 1 and metrics["guard/engaged"] == 0
    assert {"guard/nan", "guard/timeout", "guard/vetoes", "guard/telemetry", "guard/trips"} <= metrics.keys()


@pytest.mark.parametrize("limit", [{"veto_rate": 1.5}, {"timeout_us": 0}, {"recover_after": 0}])
def test_limits_are_checked(limit):
    with pytest.raises(ValueError, match=next(iter(limit))):
        GuardLimits(**limit)
