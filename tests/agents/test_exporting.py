"""Export: the runtime's runners answer as Stable-Baselines3 does, and the bundle says where it comes from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import tiny_library, tiny_suite, tiny_training

from pikv_agents import training
from pikv_agents.checkpoints import load_checkpoint
from pikv_agents.cli import main
from pikv_agents.evaluation import evaluate
from pikv_agents.exporting import export, recorded_telemetry
from pikv_agents.rollout import Learned
from pikv_agents.survey import survey
from pikv_env.pool import WorkloadPool
from pikv_runtime.contract import Telemetry
from pikv_runtime.control_views import make_view
from pikv_runtime.policy import NativeRunner, NumpyRunner, load_bundle, random_telemetry, shelf
from pikv_runtime.policy.toolchain import NativeBuildError

CASES = 2000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "a"
    return training.train(tiny_training(learning_rate=0.02), tiny_library(), out, tracking="disabled", progress=False)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    evaluation = evaluate({}, tiny_suite(), ("needle-onoff",), (0, 1), grid=(), rivals={"lazy/h2o": "lazy/h2o"})
    return export(run.run_dir, tmp_path_factory.mktemp("out") / "tiny-0.1", evaluation=evaluation, command="pikv x")


@pytest.fixture(scope="module")
def learned(run):
    config = tiny_training(learning_rate=0.02)
    pool = WorkloadPool(tiny_library(), config.env, 0)
    found = survey(config, pool)
    env, levers = training.saving_env(config, pool, found)
    model = training.build(config, env, found, levers)
    model.policy.load_state_dict(load_checkpoint(run.run_dir / "checkpoints" / "last").tensors)
    return Learned(model, make_view("coef"), levers)


def told_cases(run) -> list[Telemetry]:
    """Recorded telemetry, disturbed until there are thousands of cases."""
    recorded, rng = recorded_telemetry(run.run_dir), np.random.default_rng(0)
    cases = [random_telemetry(32, rng) for _ in range(CASES // 4)]
    while len(cases) < CASES:
        one = recorded[int(rng.integers(len(recorded)))]
        noise = [rng.normal(1, 0.05, a.shape).astype(np.float32) for a in (one.groups, one.globals)]
        cases.append(Telemetry(one.groups * noise[0], one.globals * noise[1]))
    return cases


@pytest.mark.parametrize("runner", ["numpy", "native"])
def test_runners_answer_as_the_learner_predicts(run, learned, runner):
    network = load_checkpoint(run.run_dir / "checkpoints" / "last").network()
    try:
        mine = {"numpy": NumpyRunner, "native": NativeRunner}[runner](network)
    except NativeBuildError:
        pytest.skip("no C compiler")
    for told in told_cases(run):
        expected, answer = learned.decide(told), mine.decide(told)
        for part in ("groups", "globals"):
            wanted = getattr(expected, part)
            error = np.abs(getattr(answer, part) - wanted) / np.maximum(1, np.abs(wanted))
            assert error.max() <= 1e-5


def test_a_bundle_says_where_it_comes_from(bundle):
    manifest = load_bundle(bundle).manifest
    assert (manifest.name, manifest.version, manifest.interval_s) == ("tiny", "0.1", 2.0)
    provenance = manifest.provenance
    assert provenance["families"] == ["facts-poisson", "code-bursty"]
    assert provenance["traces"]["model"] == "synthetic-0" and provenance["profile"] == "cpu-gloo"
    assert provenance["seeds"] == [0] and provenance["learner"] == "ppo"


def test_the_card_is_made_from_the_results(bundle):
    loaded = load_bundle(bundle)
    row = loaded.evaluation["evaluation"]["families"]["needle-onoff"]["policies"]["lazy/h2o"]
    assert f"| {row['J']:.3f} |" in loaded.card and "facts-poisson" in loaded.card


def test_golden_pairs_hold_recorded_telemetry(bundle, run):
    pairs = load_bundle(bundle).golden
    recorded = recorded_telemetry(run.run_dir)
    same = [any(np.array_equal(t.globals, r.globals) for r in recorded) for t, _ in pairs]
    assert len(pairs) == 32 and sum(same) == 16
    found = shelf.describe(bundle)
    assert found["golden_error"] < 1e-5 and found["decision_us"]["numpy"] > 0


def test_an_existing_bundle_is_not_replaced_unasked(run, bundle):
    with pytest.raises(FileExistsError):
        export(run.run_dir, bundle)
    assert export(run.run_dir, bundle, overwrite=True) == bundle


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        export(tmp_path, tmp_path / "b-0.1")


def test_the_commands(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "trained_policies" / "mine-0.2"
    assert main(["export", "--run-dir", str(run.run_dir), "--out", str(out), "--version", "0.2"]) == 0
    assert main(["policies", "verify", "mine", "--json", str(tmp_path / "v.json")]) == 0
    assert json.loads((tmp_path / "v.json").read_text())["policies"][0]["bundle"] == "mine-0.2"
    assert main(["policies"]) == 0 and main(["policies", "show", "mine"]) == 0
    assert "mine 0.2" in capsys.readouterr().out
    (out / "README.md").write_text("changed")
    assert main(["policies", "verify", "mine"]) == 2
    assert "does not match its SHA-256" in capsys.readouterr().err
    assert main(["policies", "list"]) == 0
    listed = capsys.readouterr().out
    assert "refused" in listed and "mine-0.2" in listed, "a long reason leaves room for the name"
