"""Rollouts and `evaluate`: independence of lanes, agreement with the report's schema, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import START, tiny_library, tiny_suite, tiny_training

from pikv_agents.commands.evaluate import label
from pikv_agents.evaluation import evaluate, starts
from pikv_agents.exporting import export
from pikv_agents.report.schema import check_evaluation, check_summary
from pikv_agents.report.verdict import verdict
from pikv_agents.rollout import Episode, Suite
from pikv_agents.training import train
from pikv_runtime.controllers import make_policy
from pikv_runtime.policy import PolicyNetwork, save_bundle
from pikv_runtime.registry import UnknownNameError

EPISODES = [Episode(f, s, p) for f in ("facts-poisson", "code-bursty") for s in (0, 1) for p in (1.0, 4.0)]
RIVALS = {"capped_exact": "capped_exact/lru", "lazy/h2o": "lazy/h2o"}


@pytest.fixture(scope="module")
def suite() -> Suite:
    return tiny_suite()


@pytest.fixture(scope="module")
def found(suite):
    learned = make_policy("static:ratio=2,cached_share=0.3/h2o")
    return evaluate({"learned": learned}, suite, ("needle-onoff", "code-bursty"), (0, 1, 2), (2.0,),
                    rivals=RIVALS, grid=(START, "lru"))  # fmt: skip


def test_an_episode_does_not_depend_on_the_other_lanes(suite):
    together = suite.run_all({"a": lambda: make_policy("random:seed=3"), "b": "lazy/h2o"}, EPISODES)
    for k in (0, 3, 7):
        alone = tiny_suite().run(lambda: make_policy("random:seed=3"), [EPISODES[k]])[0]
        assert alone.score == together["a"][k].score
        assert alone.counters["hit_rate"] == together["a"][k].counters["hit_rate"]


def test_outcomes_of_heuristics_are_remembered_and_those_of_makers_are_not():
    counts: list[int] = []
    suite = tiny_suite()
    suite.progress = counts.append
    first = suite.run("lazy/h2o", EPISODES[:2])
    again = suite.run("lazy/h2o", EPISODES[:2])
    assert sum(counts) == 2 and first == again
    suite.run(lambda: make_policy("lazy/h2o"), EPISODES[:2])
    assert sum(counts) == 4


def test_threads_change_nothing(suite):
    threaded = Suite(suite.library, suite.config, threads=2)
    scores = [[o.score for o in s.run("h2o", EPISODES)] for s in (suite, threaded)]
    assert scores[0] == scores[1]


def test_a_timeline_is_what_the_report_wants(suite):
    outcome = suite.run("static:ratio=2,demote=true,r_pressure=4/h2o", EPISODES[1:2], timeline=True)[0]
    run = outcome.timeline
    meta = {"date": "", "commit": "", "machine": "", "versions": {}, "stages": []}
    check_summary({"meta": meta, "timeline": {"family": "facts-poisson", "runs": [run]}})
    assert max(run["pages"]["int8"]) + max(run["pages"]["int4"]) > 0
    totals = sum(np.array(run["bytes"][state]) for state in run["bytes"])
    assert totals.max() <= 1.0 and totals.max() > 0.1
    np.testing.assert_allclose(totals, run["pressure"], atol=0.05)
    assert set(run["controls"]["mean_ratio"]) == {2.0}


def test_the_result_is_what_the_report_reads(found):
    checked = check_evaluation(found)
    assert set(checked["families"]) == {"needle-onoff", "code-bursty"}
    row = checked["families"]["needle-onoff"]
    assert row["split"] == "test"
    assert set(row["policies"]) == {*RIVALS, "learned", "static_global", "static_tuned"}
    for costs in row["policies"].values():
        parts = costs["latency"] + found["lambda1"] * costs["memory"] + found["lambda2"] * (1 - costs["fidelity"])
        assert costs["J"] == pytest.approx(parts) == pytest.approx(np.mean(costs["scores"]))
        assert costs["ci95"][0] <= costs["J"] <= costs["ci95"][1]
    assert verdict(checked).learned == "learned"


def test_static_tuned_is_never_worse_than_static_global(found):
    for row in found["families"].values():
        pairs = zip(row["policies"]["static_tuned"]["scores"], row["policies"]["static_global"]["scores"], strict=True)
        assert all(tuned <= single for tuned, single in pairs)


def test_several_pressures_are_rows_of_their_own(suite):
    found = evaluate({}, suite, ("code-bursty",), (0,), (1.0, 4.0), rivals=RIVALS, grid=())
    assert list(found["families"]) == ["code-bursty@1", "code-bursty@4"]
    assert found["iqm"]["capped_exact"]["ci95"] is None  # one workload gives no interval


def test_a_test_family_seen_in_training_is_refused(suite, tmp_path):
    path = tmp_path / "leaky-0.1"
    save_bundle(path, PolicyNetwork.random((8,)), name="leaky", version="0.1", interval_s=2.0, objective_version="1",
                provenance={"families": ["needle-onoff"]}, evaluation={}, card="")  # fmt: skip
    with pytest.raises(ValueError, match=r"needle-onoff.*saw it in training"):
        evaluate({"learned": str(path)}, suite, ("needle-onoff",), (0,), rivals={}, grid=())
    played = evaluate({"learned": str(path)}, suite, ("code-bursty",), (0,), rivals={}, grid=(), runner="numpy")
    assert played["roles"] == {"learned": "learned"}


def test_a_misspelt_heuristic_gets_the_closest_name():
    with pytest.raises(UnknownNameError, match="unknown policy 'lazzy': did you mean 'lazy'"):
        evaluate({"mine": "lazzy/h2o"}, tiny_suite(), ("needle-onoff",), (0,))


def test_whoever_learned_nothing_meets_its_start(tmp_path):
    result = train(tiny_training(), tiny_library(), tmp_path / "run", tracking="disabled", progress=False)
    bundle = str(export(result.run_dir, tmp_path / "mine-0.1"))
    assert starts({"learned": bundle, "lazy/h2o": "lazy/h2o"}) == [START]
    found = evaluate({"learned": bundle}, tiny_suite(), ("needle-onoff",), (0, 1), rivals={}, grid=())
    assert set(found["iqm"]) == {START, "learned"}


def test_bundles_of_one_name_stay_apart():
    assert set(label(("a/q-0.1", "b/q-0.1", "lazy/h2o"))) == {"learned a/q-0.1", "learned b/q-0.1", "lazy/h2o"}
    assert set(label(("a/q-0.1",))) == {"learned"}
