"""Training: the start, the reward's baseline, checkpoints, interruption, reproducibility."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import START, tiny_library, tiny_training

from pikv_agents import training
from pikv_agents.checkpoints import find_checkpoint, load_checkpoint
from pikv_agents.cli import main
from pikv_agents.learners import LEARNERS
from pikv_agents.presets import PRESETS, preset
from pikv_agents.report.schema import check_summary
from pikv_agents.static_grid import QUICK_GRID, STATIC_GRID, encode_static
from pikv_agents.survey import survey
from pikv_agents.tracking import read_metrics
from pikv_agents.watch import Watch
from pikv_env.pool import WorkloadPool
from pikv_runtime.contract import Telemetry
from pikv_runtime.control_views import make_view
from pikv_runtime.controllers import make_policy
from pikv_runtime.registry import UnknownNameError


@pytest.fixture(scope="module")
def library():
    return tiny_library()


@pytest.fixture(scope="module")
def result(library, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return training.train(tiny_training(), library, out / "a", tracking="disabled", progress=False)


def test_a_run_leaves_checkpoints_curve_and_result(result):
    names = {p.name for p in result.run_dir.rglob("*") if p.is_file()}
    assert {"metrics.jsonl", "run.json", "training.json", "policy.safetensors", "checkpoint.json"} <= names
    assert not any(name.endswith((".zip", ".pkl", ".pth")) for name in names)
    meta = {"date": "", "commit": "", "machine": "", "versions": {}, "stages": []}
    check_summary({"meta": meta, "training": result.to_dict()})
    assert json.loads((result.run_dir / "training.json").read_text())["steps"] == result.steps == 256
    assert {"eval/J", "eval/ratio_to_start", "losses/value_loss"} <= set(read_metrics(result.run_dir))


def test_what_is_kept_is_the_best_on_validation_start_included(result):
    ratios = read_metrics(result.run_dir)["eval/ratio_to_start"]["value"]
    kept = load_checkpoint(result.checkpoint)
    assert kept.meta["evaluation"]["ratio"] == min(ratios) == result.ratio
    assert ("No better than its start" in result.sentence()) == (not result.improved)
    assert find_checkpoint(result.run_dir) == result.checkpoint


@pytest.mark.parametrize("learner", ["ppo", "a2c"])
def test_training_is_reproducible_by_seed(library, tmp_path, learner):
    config = tiny_training(learner=learner, steps=128, evaluations=1)
    runs = []
    for name in "ab":
        training.train(config, library, tmp_path / name, tracking="disabled", progress=False)
        runs.append(load_checkpoint(tmp_path / name / "checkpoints" / "last").tensors)
    assert runs[0].keys() == runs[1].keys()
    assert all(bool((runs[0][k] == runs[1][k]).all()) for k in runs[0])


def test_sac_trains_but_is_not_exportable(library, tmp_path):
    config = tiny_training(learner="sac", steps=160, evaluations=1, rollout=8)
    result = training.train(config, library, tmp_path / "sac", tracking="disabled", progress=False)
    with pytest.raises(ValueError, match=r"'sac' squashes.*allowed ppo, a2c"):
        load_checkpoint(result.checkpoint).network()


@pytest.mark.parametrize("control", ["box", "discrete"])
def test_other_control_views_start_at_the_start(library, tmp_path, control):
    from dataclasses import replace

    config = tiny_training(steps=128, evaluations=1)
    config = replace(config, env=replace(config.env, control=control))
    result = training.train(config, library, tmp_path / control, tracking="disabled", progress=False)
    first = read_metrics(result.run_dir)["eval/ratio_to_start"]["value"][0]
    assert first == pytest.approx(1.0, abs=0.1)


def test_ctrl_c_leaves_a_usable_checkpoint_and_exits_130(library, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    library.save(tmp_path / "traces.safetensors")
    monkeypatch.setitem(PRESETS, "quick", tiny_training())
    monkeypatch.setattr(Watch, "_on_rollout_end", stop)
    arguments = ["--preset", "quick", "--library", str(tmp_path / "traces.safetensors"), "--track", "disabled"]
    code = main(["train", "--out", str(tmp_path / "run"), *arguments, "--families", "facts-poisson"])
    assert code == 130
    assert json.loads((tmp_path / "run" / "training.json").read_text())["interrupted"]
    for name in ("best", "last"):
        load_checkpoint(tmp_path / "run" / "checkpoints" / name).network()


def test_playing_the_start_saves_nothing(library):
    config = tiny_training()
    pool = WorkloadPool(library, config.env, 0)
    found = survey(config, pool)
    env, levers = training.saving_env(config, pool, found)
    env.set_options({"workload": 0, "pressure": float(found.levels[1])})
    env.reset()
    action = encode_static(START, "coef", 32)[list(levers.columns)]
    rewards = [env.step(np.tile(action, (4, 1)))[1] for _ in range(20)]
    np.testing.assert_allclose(rewards, 0.0, atol=1e-4)
    env.close()


def test_the_normaliser_is_measured_and_finite(library):
    config = tiny_training()
    found = survey(config, WorkloadPool(library, config.env, 0))
    assert np.isfinite(found.mean).all() and min(found.std) > 0
    assert found.charges.shape[:2] == (2, len(found.levels)) and found.charges.sum() > 0
    assert len(found.telemetry["groups"]) == len(found.telemetry["globals"]) > 4


@pytest.mark.parametrize("spec", STATIC_GRID)
def test_the_start_is_encoded_as_what_it_asks(spec):
    told = Telemetry.zeros(8)
    wanted = make_policy(spec).decide(told)
    action = encode_static(spec, "coef", 8)
    groups, globals_ = wanted.groups[None].copy(), wanted.globals[None].copy()
    make_view("coef").decode(action[None], told.groups[None], told.globals[None], groups, globals_)
    np.testing.assert_allclose(globals_[0], wanted.globals, atol=1e-5)
    np.testing.assert_allclose(groups[0], wanted.groups, atol=1e-4)


def test_configurations_are_checked():
    assert set(QUICK_GRID) < set(STATIC_GRID) and {"ppo", "a2c", "sac"} == set(LEARNERS)
    with pytest.raises(UnknownNameError, match="quick"):
        preset("qiuck")
    with pytest.raises(ValueError, match="half_life_s=10"):
        preset("quick", half_life_s=10)
    assert preset("quick", ("facts-poisson",), seed=3).env.families == ("facts-poisson",)
