"""Arrival processes: rates, burstiness, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from workload_kit import HORIZON_S, process

from pikv_env.workloads import (
    ARRIVALS,
    Replay,
    Sessions,
)
from pikv_env.workloads.arrivals import Diurnal, Gamma, OnOff, Poisson, warp


@pytest.mark.parametrize("name", ARRIVALS.names())
@pytest.mark.parametrize("rate", [0.05, 2.0])
def test_arrivals_are_sorted_inside_and_at_the_rate(name: str, rate: float, tmp_path: Path) -> None:
    draw = process(name, tmp_path)
    counts = []
    for seed in range(20):
        times = draw(np.random.default_rng(seed), rate, HORIZON_S)  # type: ignore[operator]
        assert np.all(np.diff(times) >= 0)
        assert not len(times) or (times[0] >= 0 and times[-1] < HORIZON_S)
        assert np.array_equal(times, draw(np.random.default_rng(seed), rate, HORIZON_S))  # type: ignore[operator]
        counts.append(len(times))
    assert abs(np.mean(counts) / (rate * HORIZON_S) - 1) < (0.25 if rate < 1 else 0.08)
    with pytest.raises(ValueError, match="must be positive"):
        draw(np.random.default_rng(0), 0.0, HORIZON_S)  # type: ignore[operator]


@pytest.mark.parametrize(("draw", "low", "high"), [(Poisson(), 0.9, 1.1), (Gamma(4.0), 3.0, 5.0), (OnOff(), 1.2, 3)])
def test_burstiness(draw: Poisson, low: float, high: float) -> None:
    gaps = np.diff(draw(np.random.default_rng(0), 5.0, 4 * HORIZON_S))
    assert low < gaps.std() / gaps.mean() < high


def test_diurnal_swings_with_its_period() -> None:
    times = np.concatenate([Diurnal(600, 0.9)(np.random.default_rng(s), 5.0, HORIZON_S) for s in [4]])
    counts, _ = np.histogram(times, bins=36, range=(0, HORIZON_S))
    power = np.abs(np.fft.rfft(counts - counts.mean()))
    assert int(np.argmax(power)) == 3


def test_sessions_number_their_turns() -> None:
    times, session, turn = Sessions(2, 5, think_median_s=20).draw(np.random.default_rng(1), 2.0, HORIZON_S)
    assert turn.min() == 0 and turn.max() == 4 and len(times) == len(session) == len(turn)
    for s in np.unique(session)[:50]:
        own = turn[session == s]
        assert np.array_equal(own, np.arange(own[0], own[0] + len(own)))
    halves = np.mean(times < HORIZON_S / 2)
    assert 0.45 < halves < 0.55, "sessions under way at time 0 are missing"


def test_replay_breaks_up_the_quantised_stamps(tmp_path: Path) -> None:
    times = process("replay", tmp_path)(np.random.default_rng(0), 2.0, HORIZON_S)  # type: ignore[operator]
    assert len(np.unique(times)) == len(times)


def test_warp_keeps_the_count_and_bends_the_rate() -> None:
    times = np.linspace(0, 99.9, 3000)
    bent = warp(times, np.array([0.0, 50.0, 100.0]), np.array([1.0, 2.0]), 100.0)
    assert len(bent) == 3000 and np.all(np.diff(bent) >= 0)
    assert abs(np.mean(bent < 50) - 1 / 3) < 0.01


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gamma(0),
        lambda: Diurnal(amplitude=2),
        lambda: OnOff(lull=-1),
        lambda: Sessions(3, 2),
        lambda: Sessions(think_median_s=0),
        lambda: Replay(""),
    ],
)
def test_processes_refuse_bad_parameters(make: type) -> None:
    with pytest.raises(ValueError, match="="):
        make()
