"""The bracket against the exact optimum of tiny problems."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_kit import optimum, tiny_problem

from pikv_env.oracle.bracket import solve
from pikv_env.oracle.evaluation import evaluate
from pikv_env.oracle.schedule import with_room


def check(seed: int, layers: int) -> float:
    """The bracket's width; NaN where trying everything would take too long."""
    problem, _ = with_room(tiny_problem(seed, layers))
    exact = optimum(problem)
    if math.isnan(exact):
        return math.nan
    found = solve(problem)
    assert found.lower <= exact + 1e-9, (found.lower, exact)
    assert exact <= found.upper + 1e-9, (exact, found.upper)
    parts = evaluate(problem, found.paths)
    assert parts.over_bytes == 0 and parts.total == pytest.approx(found.upper)
    return found.width


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 2))
def test_the_optimum_lies_in_the_bracket(seed: int, layers: int) -> None:
    check(seed, layers)


def test_most_brackets_of_tiny_problems_are_narrow() -> None:
    widths = np.array([check(seed, 1) for seed in range(24, 40)])
    widths = widths[~np.isnan(widths)]
    assert len(widths) >= 7
    assert np.median(widths) <= 0.05
