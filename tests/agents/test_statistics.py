"""Statistics against values worked out by hand and against known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pikv_agents.statistics import (
    as_table,
    bootstrap_interval,
    iqm,
    paired_difference,
    paired_differences,
    probability_of_improvement,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 100], 4.5),  # drops two at each end: mean of 3, 4, 5, 6
        ([[1, 2, 3, 4], [5, 6, 7, 100]], 4.5),  # the same pooled over tasks
        ([3.0], 3.0),
        ([0, 10, 20], 10),  # a quarter of three rounds down to none
        (np.array([5.0, 5.0, 5.0, 1000.0]), 5.0),
    ],
)
def test_iqm_by_hand(scores, expected):
    assert iqm(scores) == pytest.approx(expected)


def test_iqm_takes_ragged_tables():
    assert iqm([[1, 2], [3, 4, 5, 6, 7, 100]]) == pytest.approx(4.5)


def test_mean_interval_matches_normal_theory():
    scores = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = bootstrap_interval(scores, "mean")
    half = 1.96 * scores.std() / 20
    assert found.value == pytest.approx(scores.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert found.low < found.value < found.high


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(100):
        table = rng.normal([[0.0], [10.0]], 1.0, (2, 20))
        found = bootstrap_interval(table, "mean", 0.9, resamples=400, seed=trial)
        hits += found.low <= 5.0 <= found.high
    assert 78 <= hits <= 98


def test_strata_are_not_mixed():
    """Tasks far apart without spread inside: resampling within tasks leaves nothing uncertain."""
    found = bootstrap_interval([[0.0] * 5, [100.0] * 5], "mean")
    assert (found.low, found.value, found.high) == (50.0, 50.0, 50.0)


def test_the_seed_decides():
    scores = np.random.default_rng(3).random((3, 6))
    assert bootstrap_interval(scores, seed=5) == bootstrap_interval(scores, seed=5)
    assert bootstrap_interval(scores, seed=5) != bootstrap_interval(scores, seed=6)


def test_pairing_sees_what_two_intervals_hide():
    rng = np.random.default_rng(4)
    baseline = rng.normal(10, 5, (4, 10))
    candidate = baseline - 0.5 + rng.normal(0, 0.1, (4, 10))
    paired = paired_difference(candidate, baseline)
    assert paired.value == pytest.approx(np.mean(candidate - baseline))
    assert -0.6 < paired.low < paired.high < -0.4
    assert bootstrap_interval(candidate).high > bootstrap_interval(baseline).low


def test_differences_by_workload_and_over_all():
    found = paired_differences({"a": [1.0, 2.0], "b": [5.0, 5.0], "c": [0, 0]}, {"a": [2.0, 3.0], "b": [4.0, 4.0]})
    assert {task: row.value for task, row in found.items()} == {"a": -1.0, "b": 1.0, "all": 0.0}
    with pytest.raises(ValueError, match="no task is shared"):
        paired_differences({"a": [1, 2]}, {"b": [1, 2]})


def test_probability_of_improvement_by_hand():
    # Task 1: 1 beats both of (2, 3), 3 ties once: (2 + 0.5) / 4. Task 2: always better.
    found = probability_of_improvement([[1, 3], [0, 0]], [[2, 3], [1, 1]])
    assert found.value == pytest.approx((0.625 + 1.0) / 2)
    assert probability_of_improvement([[1, 3]], [[2, 3]], lower_is_better=False).value == pytest.approx(0.375)


def test_probability_of_improvement_is_mann_whitney_and_matches_the_normal_formula():
    rng = np.random.default_rng(5)
    candidate, baseline = rng.normal(0, 1, 200), rng.normal(1, 1, 200)
    found = probability_of_improvement([candidate], [baseline], resamples=200)
    u = stats.mannwhitneyu(baseline, candidate).statistic
    assert found.value == pytest.approx(u / 200**2)
    assert found.value == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.05)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_table([]), "empty"),
        (lambda: iqm([1.0, float("nan")]), "NaN or infinity"),
        (lambda: as_table(np.zeros((2, 2, 2))), "dimensions"),
        (lambda: bootstrap_interval([1.0]), "at least 2"),
        (lambda: bootstrap_interval([1.0, 2.0], "median"), "allowed iqm, mean"),
        (lambda: bootstrap_interval([1.0, 2.0], confidence=95), "between 0 and 1"),
        (lambda: paired_difference([1, 2, 3], [1, 2]), "pairs need the same"),
        (lambda: probability_of_improvement([[1, 2]], [[1, 2], [1, 2]]), "same tasks"),
    ],
)
def test_wrong_tables_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
