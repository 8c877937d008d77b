"""The oracle's parts on tiny problems: room by iteration, states that never fit, bins."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_kit import feasible, tiny_problem

from pikv_env.oracle.costs import rank_shares, stage_costs
from pikv_env.oracle.relaxation import Dual, Relaxation, refine
from pikv_env.oracle.room import forbid
from pikv_env.oracle.schedule import with_room
from pikv_env.oracle.space import give, least_free, space_of


@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_room_by_iteration_is_that_of_a_plain_list(count: int) -> None:
    rng = np.random.default_rng(count)
    plain = rng.integers(0, 100, (2, count))
    space = space_of(plain)
    for _ in range(60):
        rank, begin = int(rng.integers(2)), int(rng.integers(count))
        end, size = int(rng.integers(begin + 1, count + 1)), int(rng.integers(-20, 20))
        give(space, rank, begin, end, size)
        plain[rank, begin:end] += size
        other = int(rng.integers(2))
        assert least_free(space, other, begin, end) == plain[other, begin:end].min()


def test_no_state_is_forbidden_that_a_feasible_schedule_is_in() -> None:
    closed = 0.0
    for seed in range(40):
        problem, _ = with_room(tiny_problem(seed))
        base = stage_costs(problem, rank_shares(problem))
        closed += forbid(problem, base)
        rows, layers = np.arange(problem.stages)[:, None], np.arange(problem.layers)
        for paths, _ in feasible(problem):
            assert np.isfinite(base[rows, layers, paths]).all(), seed
    assert closed > 0  # else this test would have seen nothing


def test_bins_are_cut_where_a_burst_begins_and_ends() -> None:
    problem = tiny_problem(0)
    relaxation = Relaxation(problem, rank_shares(problem), 2)
    nothing = np.zeros((problem.ranks, 2))
    value, _, paths = relaxation.solve(nothing)
    held = np.zeros((problem.ranks, len(problem.rho)))
    held[0, 5:8] = problem.cap[0, 5:8] + [1.0, 9.0, 1.0]
    prices = refine(relaxation, Dual(value, nothing + 0.5, relaxation.edges_s, paths), held)
    for edge in (problem.start_s[5], problem.end_s[7], problem.start_s[6], problem.end_s[6]):
        assert edge in relaxation.edges_s
    assert (prices == 0.5).all() and prices.shape == (problem.ranks, len(relaxation.edges_s) - 1)
