"""The headroom table: its rows fit the report, and the clairvoyant schedule is honest."""

from __future__ import annotations

import pytest
from tiny import START, tiny_headroom, tiny_suite

from pikv_agents.greedy import Lookahead, greedy_score
from pikv_agents.headroom import headroom
from pikv_agents.report import tables
from pikv_agents.report.schema import check_summary
from pikv_agents.rollout import Episode

POLICIES = {"capped_exact", "static_global", "static_tuned", "best_heuristic", "greedy"}


@pytest.fixture(scope="module")
def suite():
    return tiny_suite()


@pytest.fixture(scope="module")
def found(suite):
    return headroom(suite, ("facts-poisson", "needle-onoff"), tiny_headroom())


def test_rows_fit_the_report(found):
    meta = {"date": "", "commit": "", "machine": "", "versions": {}, "stages": []}
    check_summary({"meta": meta, "headroom": found["rows"]})
    assert all(set(row["policies"]) == POLICIES for row in found["rows"])
    assert tables.headroom(found["rows"]).row_count == 2


def test_headroom_is_of_the_best_that_was_played(found):
    for row in found["rows"]:
        tuned = row["policies"]["static_tuned"]["J"]
        feasible = sum(row["feasible"]) / len(row["feasible"])
        assert feasible <= min(costs["J"] for costs in row["policies"].values()) + 1e-12
        assert row["headroom"] == pytest.approx((tuned - feasible) / tuned) and row["headroom"] >= 0
        assert tuned <= row["policies"]["static_global"]["J"]


def test_static_global_is_chosen_on_training_families_only(found):
    assert found["training"] == ["facts-poisson"] and found["static_global"] in found["grid"]


def test_greedy_with_one_candidate_is_that_policy(suite):
    episode = Episode("facts-poisson", 0, 2.0)
    alone = greedy_score(suite, episode, [START], START, Lookahead(7, 7))
    assert alone == suite.run(START, [episode])[0].score


def test_greedy_that_sees_to_the_end_is_no_worse_than_its_base(suite):
    episode = Episode("code-bursty", 1, 4.0)
    base = suite.run("lazy/h2o", [episode])[0].score.J
    seen = greedy_score(suite, episode, ["lazy/h2o", START, "h2o"], "lazy/h2o", Lookahead(10, 1000))
    assert base + 1e-9 >= seen.J


def test_a_lookahead_shorter_than_its_hold_is_refused():
    with pytest.raises(ValueError, match="hold=9, depth=3"):
        Lookahead(9, 3)
