"""The headroom table: its rows fit the report, and the clairvoyant schedules are honest."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from tiny import START, tiny_headroom, tiny_suite

from pikv_agents import cli, oracle_study
from pikv_agents.greedy import Lookahead, greedy_score
from pikv_agents.headroom import headroom
from pikv_agents.hindsight import AXES, neighbours, tune
from pikv_agents.racing import race
from pikv_agents.report import tables
from pikv_agents.report.schema import check_summary
from pikv_agents.rollout import Episode
from pikv_agents.row_file import RowFile
from pikv_runtime.controllers import Static, make_policy

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
        parts = row["headroom_by_workload"]
        assert len(parts) == 2 and min(parts) - 1e-12 <= row["headroom"] <= max(parts) + 1e-12
        assert tuned <= row["policies"]["static_global"]["J"]


def test_static_global_is_chosen_on_training_families_only(found):
    assert found["training"] == ["facts-poisson"] and found["static_global"] in found["grid"]


def test_static_global_can_be_chosen_from_rows_and_is_the_same(suite, found):
    cells = [("needle-onoff", 2.0)]
    apart = headroom(suite, ("needle-onoff",), tiny_headroom(), training=["facts-poisson"], cells=cells)
    assert (apart["static_global"], apart["grid_intervals"]) == (found["static_global"], found["grid_intervals"])
    assert apart["rows"] == found["rows"][1:]
    given = headroom(suite, ("needle-onoff",), replace(tiny_headroom(), static_global="h2o"))
    episodes = [Episode("needle-onoff", seed, 2.0) for seed in (0, 1)]
    mean = sum(o.score.J for o in suite.run("h2o", episodes)) / 2
    assert given["static_global"] == "h2o" and given["rows"][0]["policies"]["static_global"]["J"] == pytest.approx(mean)


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


def test_a_step_changes_one_axis_and_reaches_every_order():
    setting = make_policy(START)
    for axis in AXES:
        for one in neighbours(setting, axis):
            differing = {k for k, v in vars(one).items() if v != getattr(setting, k)}
            assert differing - {"demote"} == {axis} and make_policy(one.name) == one
    assert {one.cached_share for one in neighbours(setting, "cached_share")} == {0.35, 1.0}
    assert not next(s for s in neighbours(setting, "r_pressure") if s.r_pressure == 1).demote
    assert {"arc", "lrb", "tlru"} <= {one.block_rule for one in neighbours(Static(), "block_rule")}


def test_the_search_in_hindsight_finds_what_a_poor_grid_lacks(suite):
    episodes = [Episode("code-bursty", seed, 4.0) for seed in (0, 1)]
    poor = "static:fan_out=0.1,cached_share=0.02/lru"
    none, searched = (tune(suite, episodes, [poor], AXES, rounds) for rounds in (0, 2))
    assert none.best == poor and none.least() == none.table[poor]
    assert sum(searched.least()) < 0.97 * sum(none.least())
    for k, spec in enumerate(searched.by_episode()):
        assert suite.run(spec, [episodes[k]])[0].score.J == searched.least()[k] == min(
            row[k] for row in searched.table.values()
        )  # fmt: skip


def test_only_what_ends_above_the_limit_is_stopped():
    episode, specs = Episode("code-bursty", 0, 4.0), ["static/lru", START, "lazy/h2o", "h2o"]
    truth = {spec: tiny_suite().run(spec, [episode])[0].score.J for spec in specs}
    limit = sorted(truth.values())[1] * (1 + 1e-9)
    suite = tiny_suite()
    found = race(suite, specs, [episode], [limit])
    assert found == [[J if limit >= J else math.inf] for J in truth.values()]
    assert {spec for spec in specs if suite.known(spec, episode)} == {s for s, J in truth.items() if limit >= J}
    assert race(suite, specs, [episode], [math.inf]) == [[J] for J in truth.values()], "and may be played later"


@pytest.fixture(scope="module")
def foreseen(suite):
    config = replace(tiny_headroom(), seeds=(0,), foresight_rounds=0)
    return headroom(suite, ("facts-poisson",), config, training=["code-bursty"])["rows"][0]


def test_levers_are_bounded_by_what_they_are_part_of(foreseen):
    tuned, levers = foreseen["policies"]["static_tuned"]["J"], foreseen["levers"]
    assert set(levers) == {"retention", "compression", "both", "switching"}
    for name, lever in levers.items():
        assert lever["gain"] == pytest.approx(1 - lever["J"] / tuned) and lever["gain"] >= 0
        assert lever["gain"] <= foreseen["headroom"] + 1e-12, name
    assert levers["both"]["J"] <= min(levers["retention"]["J"], levers["compression"]["J"])
    assert "+belady" in levers["retention"]["settings"][0] and "clairvoyant" not in levers["retention"]["settings"][0]
    assert "/clairvoyant" in levers["compression"]["settings"][0] and "+" not in levers["compression"]["settings"][0]


def test_what_foresight_gains_is_really_played(suite, foreseen):
    (spec,) = foreseen["levers"]["both"]["settings"]
    again = tiny_suite().run(spec, [Episode("facts-poisson", 0, 2.0)])[0].score.J
    assert again >= foreseen["feasible"][0] - 1e-12


def test_a_run_that_was_cut_off_goes_on(suite, tmp_path):
    path, about = tmp_path / "rows.jsonl", {"grid": ["a"], "seeds": [0, 1]}
    config = replace(tiny_headroom(), seeds=(0,))
    whole = headroom(suite, ("facts-poisson", "needle-onoff"), config, file=RowFile(path, about))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("family") for line in lines] == [None, None, "facts-poisson", "needle-onoff"]
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:50], encoding="utf-8")

    notes: list[str] = []
    again = headroom(tiny_suite(), ("facts-poisson", "needle-onoff"), config, note=notes.append,
                     file=RowFile(path, about))  # fmt: skip
    assert again["rows"] == whole["rows"] and again["static_global"] == whole["static_global"]
    assert notes == ["needle-onoff at pressure 2"], "what is in the file is not played again"
    assert path.read_text(encoding="utf-8").splitlines()[:3] == lines[:3]


def test_static_global_is_chosen_from_the_rows_of_a_file(tmp_path):
    path, config = tmp_path / "rows.jsonl", replace(tiny_headroom(), seeds=(0,))
    headroom(tiny_suite(), ("code-bursty", "facts-poisson"), config, file=RowFile(path, {}))
    notes: list[str] = []
    training = ["code-bursty", "facts-poisson"]
    later = headroom(tiny_suite(), ("needle-onoff",), config, training, notes.append, RowFile(path, {}))
    assert notes == ["needle-onoff at pressure 2"], "nothing is played on training families again"
    whole = headroom(tiny_suite(), ("needle-onoff",), config, training)
    assert later["static_global"] == whole["static_global"] and later["rows"] == whole["rows"]


def test_rows_made_otherwise_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    RowFile(path, {"seeds": [0]}).add({"family": "a"})
    assert RowFile(path, {"seeds": [0]}).rows == [{"family": "a"}]
    with pytest.raises(ValueError, match=r"made with seeds=\[0\], asked is \[0, 1\]"):
        RowFile(path, {"seeds": [0, 1]})
    for text in ("no rows\n", "no whole line", '{"rows": 1}\n'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="not a file of rows"):
            RowFile(path, {})
        assert path.read_text(encoding="utf-8") == text


def test_the_oracle_brackets_rows_on_the_timelines_of_static_tuned(suite, found, tmp_path, monkeypatch):
    rows, path = [dict(row) for row in found["rows"][:1]], tmp_path / "rows.jsonl"
    oracle_study.add_oracle(suite, rows, (0, 1), oracle_study.QUICK, RowFile(path, {}))
    (oracle,) = (row["oracle"] for row in rows)
    assert oracle["timelines"] == rows[0]["static_tuned"] and len(oracle["lower"]) == 2
    assert all(0 < low <= high for low, high in zip(oracle["lower"], oracle["upper"], strict=True))
    assert oracle["relaxation"] <= oracle["feasible"]  # J played is by lot of who is audited, and no bound of either
    assert "relaxation" in "".join(str(column.header) for column in tables.headroom(rows).columns)

    def refuse(*args):
        raise AssertionError("searched again")

    monkeypatch.setattr(oracle_study, "played_bracket", refuse)
    again = [dict(row) for row in found["rows"][:1]]
    oracle_study.add_oracle(suite, again, (0, 1), oracle_study.QUICK, RowFile(path, {}))
    assert again[0]["oracle"] == oracle


def test_the_oracle_knows_no_host_tier(capsys):
    assert cli.main(["headroom", "--suite", "serving-host", "--oracle", "--quick"]) == 2
    assert "host=4" in capsys.readouterr().err
