"""`pikv evaluate --record-episodes` and `--replay`, and `pikv env`."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_env, tiny_library

from pikv_agents import cli
from pikv_agents.rollout import Episode, Suite
from pikv_env.episode_record import EpisodeRecord


@pytest.fixture(scope="module")
def library_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "traces.safetensors"
    tiny_library().save(path)
    return str(path)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return Suite(tiny_library(), tiny_env(ranks=2), records=tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def files(suite):
    episodes = [Episode("facts-poisson", 0, 1.0), Episode("code-bursty", 1, 4.0)]
    outcomes = suite.run("static:ratio=2,demote=true,r_pressure=4/h2o", episodes)
    paths = sorted(suite.records.iterdir())
    scores = {EpisodeRecord.load(p).final["J"] for p in paths}
    assert scores == {outcome.score.J for outcome in outcomes}
    return [str(p) for p in paths]


def test_replays_are_identical_and_shown(files, library_path, tmp_path, capsys):
    out = tmp_path / "replays.json"
    assert cli.main(["evaluate", "--replay", *files, "--library", library_path, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("identical") == 2 and "static:ratio=2" in printed
    rows = json.loads(out.read_text())["replays"]
    assert [row["verdict"] for row in rows] == ["identical"] * 2
    assert all(row["recorded"] == row["replayed"] for row in rows)


def test_a_difference_or_a_refusal_ends_in_an_error(files, library_path, tmp_path, capsys):
    record = EpisodeRecord.load(files[0])
    parts = record.parts.copy()
    parts[2, 0] = np.nextafter(parts[2, 0], 9.0)
    changed, cut, out = tmp_path / "changed.npz", tmp_path / "cut.npz", tmp_path / "replays.json"
    replace(record, parts=parts).save(changed)
    cut.write_bytes(record.to_bytes()[:500])
    arguments = ["evaluate", "--replay", files[0], str(changed), str(cut), "--library", library_path]
    assert cli.main([*arguments, "--json", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "2 of 3 records: " in printed.err
    assert "changed.npz differs: interval 2: latency was" in printed.err
    rows = json.loads(out.read_text())["replays"]
    assert [row["verdict"] for row in rows] == ["identical", "differs", "refused"]
    assert "not a sound episode record" in rows[2]["reason"]


def test_another_library_and_a_missing_file_are_one_line(files, tmp_path, capsys):
    assert cli.main(["evaluate", "--replay", files[0]]) == 2
    assert "recorded over trace library" in capsys.readouterr().err
    assert cli.main(["evaluate", "lazy/h2o", "--replay", files[0]]) == 2
    assert capsys.readouterr().err.count("leave out lazy/h2o") == 1
    assert cli.main(["evaluate", "--replay", str(tmp_path / "none.npz")]) == 2
    assert capsys.readouterr().err.endswith(f"pikv: {tmp_path / 'none.npz'}: no such file or directory\n")


def test_evaluate_records_what_it_plays(library_path, tmp_path, capsys):
    folder, out = tmp_path / "episodes", tmp_path / "evaluation.json"
    arguments = ["evaluate", "lazy/h2o", "--library", library_path, "--families", "code-bursty", "--quick",
                 "--seeds", "1", "--horizon-s", "40", "--threads", "1"]  # fmt: skip
    assert cli.main([*arguments, "--record-episodes", str(folder), "--json", str(out)]) == 0
    found = json.loads(out.read_text())["families"]["code-bursty"]["policies"]
    records = [EpisodeRecord.load(path) for path in folder.iterdir()]
    for policy in ("lazy/h2o", "random"):
        spec = {"random": "random/lru"}.get(policy, policy)
        mine = [r.final["J"] for r in records if r.header["policy"] == spec]
        assert found[policy]["scores"][0] in mine
    capsys.readouterr()
    one = next(str(path) for path in folder.iterdir() if "lazy-h2o" in path.name)
    assert cli.main(["evaluate", "--replay", one, "--library", library_path]) == 0


def test_env_prints_and_writes_the_terms(tmp_path, capsys):
    out = tmp_path / "env.json"
    assert cli.main(["env", "discrete", "--slo", "0.9", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "observation (63)" in printed and "spent_slo" in printed and "in order: lru, h2o" in printed
    found = json.loads(out.read_text())
    assert found["num_groups"] == 32 and len(found["global_controls"]) == 17
    assert cli.main(["env", "boxx"]) == 2
    assert "did you mean 'box'" in capsys.readouterr().err
