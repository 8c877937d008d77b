"""docs/deploying.md does what it says: its examples are run as they stand there."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest

from pikv_runtime.contract import Control, GlobalControl, GlobalFeature, GroupControl, Telemetry, clip_control
from pikv_runtime.policy import (
    Guard,
    GuardLimits,
    NativeRunner,
    NumpyRunner,
    linear_network,
    load_bundle,
    load_policy,
    random_telemetry,
)
from pikv_runtime.policy.toolchain import NativeBuildError
from pikv_runtime.registry import UnknownNameError

PAGE = Path(__file__).parents[2] / "docs" / "deploying.md"
HEURISTIC, CLASS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(HEURISTIC, "deploying.md", "exec"), {})
    return load_bundle(tmp_path / "trained_policies" / "by-hand-0.1")


def test_the_heuristic_as_a_bundle_is_the_formula(by_hand):
    runners = [NumpyRunner(by_hand.network)]
    with contextlib.suppress(NativeBuildError):
        runners.append(NativeRunner(by_hand.network))
    neutral = Control.neutral(5)
    rng = np.random.default_rng(0)
    for telemetry in [random_telemetry(5, rng) for _ in range(200)]:
        net = telemetry.globals[GlobalFeature.PRESSURE] - telemetry.globals[GlobalFeature.CACHED_SHARE]
        for runner in runners:
            control = runner.decide(telemetry)
            assert control.globals[GlobalControl.R_PRESSURE] == pytest.approx(np.clip(6 * net - 2, 1, 4), abs=1e-5)
            assert control.globals[GlobalControl.PAGE_MASS_SUM] == pytest.approx(1, abs=1e-6)
            assert control.globals[GlobalControl.PAGE_RECENCY] == pytest.approx(0, abs=1e-6)
            np.testing.assert_allclose(control.groups, neutral.groups, atol=1e-5)
            kept = [
                GlobalControl.FAN_OUT,
                GlobalControl.WINDOW,
                GlobalControl.CACHED_SHARE,
                GlobalControl.BLOCK_RECENCY,
            ]
            np.testing.assert_allclose(control.globals[kept], neutral.globals[kept], atol=1e-5)


def test_the_heuristic_as_a_bundle_goes_through_the_same_door(by_hand):
    policy = load_policy(by_hand.path)
    assert isinstance(policy, Guard) and policy.name == "by-hand-0.1"
    assert clip_control(policy.decide(Telemetry.zeros(3))) == 0


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"r_presure": {}}, UnknownNameError, "did you mean 'r_pressure'"),
        ({"r_pressure": {"presure": 1.0}}, UnknownNameError, "did you mean 'pressure'"),
        ({"window": {"pressure": 1.0}}, ValueError, "a constant is allowed"),
    ],
)
def test_rules_that_mean_nothing_are_refused(rules, error, message):
    with pytest.raises(error, match=message):
        linear_network(rules)


def test_a_constant_window_is_that_window():
    control = NumpyRunner(linear_network({"window": {"1": 8.0}, "fan_out": {"1": 0.3}})).decide(Telemetry.zeros(2))
    assert control.globals[GlobalControl.WINDOW] == pytest.approx(8, rel=1e-5)
    assert control.globals[GlobalControl.FAN_OUT] == pytest.approx(0.3, abs=1e-6)


def test_wide_ranges_are_not_clipped_away():
    network = linear_network({"cached_share": {"queue_age": 1 / 16}})
    telemetry = Telemetry.zeros(2)
    telemetry.globals[GlobalFeature.QUEUE_AGE] = 16
    assert NumpyRunner(network).decide(telemetry).globals[GlobalControl.CACHED_SHARE] == pytest.approx(1, abs=1e-6)


def test_the_class_in_python_holds_pressure_from_its_own_process(tmp_path):
    (tmp_path / "hold.py").write_text(CLASS)
    assert len(CLASS.splitlines()) <= 50
    guard = load_policy(f"python:{tmp_path / 'hold.py'}:Hold", limits=GuardLimits(timeout_us=5e6))
    telemetry = Telemetry.zeros(4)
    telemetry.globals[GlobalFeature.PRESSURE] = 0.9
    asked = [float(guard.decide(telemetry).groups[:, GroupControl.COMPRESSION_RATIO].mean()) for _ in range(4)]
    assert asked == pytest.approx([1.2, 1.4, 1.6, 1.8], abs=1e-5) and not guard.engaged, "it remembers"
    control = guard.decide(telemetry)
    assert control.globals[GlobalControl.PAGE_MASS_SUM] == 1 and control.globals[GlobalControl.FAN_OUT] == 1
    guard.policy.close()


def test_the_page_names_what_there_is():
    from pikv_runtime.policy.worker import WorkerPolicy

    text = PAGE.read_text(encoding="utf-8")
    defaults = dict(
        zip(WorkerPolicy.__init__.__code__.co_varnames[2:6], WorkerPolicy.__init__.__defaults__, strict=False)
    )
    assert f"time-out ({1000 * defaults['timeout_s']:g} ms)" in text
    assert f"does not answer for {defaults['patience_s']:g} s" in text and defaults["most_restarts"] == 5
