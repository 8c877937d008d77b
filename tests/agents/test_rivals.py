"""Rivals by search: the budget is kept, counted and the same for all, and each finds what is there to be found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tiny import tiny_env, tiny_headroom, tiny_library

from pikv_agents.headroom import headroom
from pikv_agents.headroom_config import HeadroomConfig
from pikv_agents.report import tables
from pikv_agents.report.schema import check_summary
from pikv_agents.rivals import SEARCHES, BudgetError, Trials
from pikv_agents.rivals.linucb import ARMS, HOLD, SIZE, Bandit, Models
from pikv_agents.rivals.own_parameters import T_LRU, UTILITY_GREEDY
from pikv_agents.rivals.space import SETTINGS, Space
from pikv_agents.rivals.trials import NEUTRAL
from pikv_agents.rollout import Episode, Suite
from pikv_runtime.contract import Telemetry
from pikv_runtime.controllers import make_policy
from pikv_runtime.registry import UnknownNameError

# Loaded until requests queue: a setting that demotes or reads less then costs a fraction of doing nothing.
EPISODES = [Episode("code-bursty", seed, 2.0) for seed in (0, 1)]
BUDGET = 2_500


class Counting(Suite):
    """A suite that counts what is really played, and lets nothing be remembered."""

    def __init__(self) -> None:
        super().__init__(tiny_library(), tiny_env(load=(0.6, 0.7)))
        self.stepped = 0

    def batch(self, family: str, seed: int, lanes: int):  # type: ignore[no-untyped-def]
        made = super().batch(family, seed, lanes)
        step = made.step

        def counted():  # type: ignore[no-untyped-def]
            self.stepped += int((~made.done).sum())
            return step()

        made.step = counted  # type: ignore[method-assign]
        return made


@pytest.fixture(scope="module")
def pools() -> Counting:
    suite = Counting()
    for episode in EPISODES:
        suite.pool(episode.family, episode.seed)
    return suite


def fresh(pools: Counting) -> Counting:
    """A suite that has played nothing, over prepared workloads."""
    suite = Counting()
    suite._pools = pools._pools
    return suite


@pytest.mark.parametrize("name", SEARCHES.names())
def test_a_search_keeps_its_budget_counts_it_and_finds_something_better(pools: Counting, name: str) -> None:
    suite = fresh(pools)
    trials = Trials(suite, EPISODES, BUDGET)
    found = SEARCHES[name](trials, np.random.default_rng(3))
    assert found.intervals == trials.spent == suite.stepped, "what is said to be played is what was played"
    assert BUDGET / 2 < found.intervals <= BUDGET and found.trials > 5
    best = fresh(pools).run_all({"found": found.policy, "neutral": NEUTRAL}, EPISODES)
    ratios = [a.score.J / b.score.J for a, b in zip(best["found"], best["neutral"], strict=True)]
    assert np.mean(np.log(ratios)) == pytest.approx(found.score)
    assert found.score < np.log(0.85), "clearly better than the neutral setting"


def test_a_search_is_reproducible(pools: Counting) -> None:
    for name in SEARCHES:
        a, b = (SEARCHES[name](Trials(fresh(pools), EPISODES, 1_000), np.random.default_rng(5)) for _ in range(2))
        assert (a.setting, a.score, a.intervals) == (b.setting, b.score, b.intervals)


def test_a_budget_that_holds_no_trial_is_refused(pools: Counting) -> None:
    with pytest.raises(BudgetError, match="budget_intervals=50: at least"):
        Trials(fresh(pools), EPISODES, 50)
    trials = Trials(fresh(pools), EPISODES, 2 * 2 * Trials(fresh(pools), EPISODES, BUDGET).worst)
    trials.score("lazy/h2o", EPISODES)
    with pytest.raises(BudgetError, match="are left"):
        trials.score("lazy/lru", EPISODES)
    assert trials.spent <= trials.budget_intervals


def test_what_others_played_is_paid_for_and_what_one_played_oneself_is_not(pools: Counting) -> None:
    suite = fresh(pools)
    first, second = Trials(suite, EPISODES, BUDGET), Trials(suite, EPISODES, BUDGET)
    first.score("lazy/h2o", EPISODES)
    spent = first.spent
    assert first.score("lazy/h2o", EPISODES) == second.score("lazy/h2o", EPISODES)
    assert first.spent == second.spent == spent > 0


@pytest.mark.parametrize("space", [SETTINGS, UTILITY_GREEDY, T_LRU])
def test_every_point_is_a_setting(space: Space) -> None:
    rng = np.random.default_rng(0)
    corners = [np.full(space.dimensions, 0.0), np.full(space.dimensions, 1.0), space.centre()]
    specs = {space.spec_of(point) for point in itertools.chain(corners, rng.random((300, space.dimensions)))}
    made = [make_policy(spec) for spec in specs]
    assert {policy.kind for policy in made} == set(space.controllers)
    assert {policy.block_rule.partition(":")[0] for policy in made} == set(space.rules)
    assert len(specs) > 290
    with pytest.raises(ValueError, match="must be"):
        space.spec_of(np.full(space.dimensions, 1.5))


def test_the_bandit_learns_which_arm_pays_in_which_context() -> None:
    models, rng = Models(), np.random.default_rng(0)
    for _ in range(400):
        x = np.concatenate([[1.0], rng.random(SIZE - 1)])
        arm = int(np.argmax(models.values(x, 1.0)))
        worth = {2: 4 * x[1], 5: 4 * (1 - x[1])}.get(arm, 0.0)  # arm 2 under pressure, arm 5 without
        models.add(arm, x, worth + rng.normal(0, 0.1))
    quiet, pressed = (np.array([1.0, level, *[0.5] * (SIZE - 2)]) for level in (0.05, 0.95))
    assert int(np.argmax(models.values(pressed, 0.0))) == 2 and int(np.argmax(models.values(quiet, 0.0))) == 5
    assert models.pulls[[2, 5]].min() > 100 > models.pulls.sum() - models.pulls[[2, 5]].sum(), "and plays what pays"


def test_a_learned_bandit_is_fixed_and_holds_its_arm() -> None:
    models = Models()
    models.add(3, np.eye(SIZE)[0], 1.0)
    before, bandit = models.moment.copy(), Bandit(models)
    told = Telemetry.zeros(4)
    for _ in range(2 * HOLD + 1):
        assert np.array_equal(bandit.decide(told).globals, make_policy(ARMS[3]).decide(told).globals)
        bandit.charges.append(5.0)
    assert np.array_equal(models.moment, before)
    assert [arm for arm, *_ in bandit.experience(2.0)] == [3, 3, 3]


def test_a_hold_is_worth_what_follows_it() -> None:
    bandit = Bandit(Models(), only=1)
    for charge in [1.0] * HOLD + [9.0] * HOLD:
        bandit.decide(Telemetry.zeros(4))
        bandit.charges.append(charge)
    (_, _, early), (_, _, late) = bandit.experience(2.0)
    assert late == pytest.approx(-np.log(9.0)) and -np.log(9.0) < early < -np.log(4.0), "but sooner counts more"
    (_, _, faded), _ = bandit.experience(200.0)
    assert faded > early


def test_headroom_has_a_column_for_each_rival(pools: Counting) -> None:
    base = tiny_headroom()
    config = HeadroomConfig(base.seeds, base.pressures, base.grid, base.heuristics, base.lookahead, 3,
                            rivals=("random_search", "linucb"), budget_intervals=1_000, search_horizon_s=30.0,
                            rounds=0, foresight_rounds=None)  # fmt: skip
    suite = Suite(tiny_library(), tiny_env())
    found = headroom(suite, ("facts-poisson",), config)
    (row,) = found["rows"]
    for name in config.rivals:
        assert found["rivals"][name]["intervals"] <= found["rivals"][name]["budget_intervals"] == 1_000
        assert np.mean(row["feasible"]) <= row["policies"][name]["J"] + 1e-12
    again = suite.run(
        found["rivals"]["random_search"]["setting"], [Episode("facts-poisson", s, 2.0) for s in base.seeds]
    )
    assert row["policies"]["random_search"]["J"] == pytest.approx(np.mean([o.score.J for o in again]))
    assert found["grid_intervals"] > 0
    meta = {"date": "", "commit": "", "machine": "", "versions": {}, "stages": []}
    check_summary({"meta": meta, "headroom": found["rows"]})
    assert "search" in "".join(str(column.header) for column in tables.headroom(found["rows"]).columns)
    with pytest.raises(UnknownNameError, match="did you mean 'cma_es'"):
        HeadroomConfig(rivals=("cma_s",))
