"""The logger: JSON lines always, W&B inside the run folder, wrong metrics refused, errors said once."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pikv_agents.tracking import RunLogger, SB3KVWriter, TrackingError, read_metrics, read_run, write_json
from pikv_agents.tracking.sb3 import metric_name


def disabled(folder, **options):
    return RunLogger(folder, mode="disabled", **options)


def test_rows_are_on_disk_at_once_and_read_back(tmp_path):
    with disabled(tmp_path / "run", config={"lr": 3e-4}, group="ppo", tags=["quick"]) as logger:
        logger.log(10, {"charts/episode_return": np.float32(-1.5), "losses/value_loss": 2})
        assert len(logger.metrics_path.read_text().splitlines()) == 1
        logger.log(20, {"charts/episode_return": -1.25})
    series = read_metrics(tmp_path / "run")
    assert series["charts/episode_return"] == {"step": [10, 20], "value": [-1.5, -1.25]}
    assert series["losses/value_loss"] == {"step": [10], "value": [2.0]}
    run = read_run(tmp_path / "run")
    assert (run["group"], run["tags"], run["config"]) == ("ppo", ["quick"], {"lr": 3e-4})
    assert logger.sync_hint() is None


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": 1.0}, "'loss': names start with one of charts/"),
        ({"charts/": 1.0}, "names start with"),
        ({"charts/a": 1.0, "losses/pi": float("nan")}, "'losses/pi'=nan"),
        ({"cost/J": float("inf")}, "'cost/J'=inf"),
        ({"cost/J": "high"}, "'cost/J'='high': must be a number"),
    ],
)
def test_wrong_metrics_are_refused_before_anything_is_written(tmp_path, metrics, message):
    with disabled(tmp_path) as logger:
        with pytest.raises(ValueError, match=message):
            logger.log(0, metrics)
        assert logger.metrics_path.read_text() == ""


def test_a_folder_with_metrics_is_not_overwritten_unasked(tmp_path):
    for existing, steps in (("refuse", [1]), ("append", [1, 1]), ("replace", [1])):
        with disabled(tmp_path, existing=existing) as logger:
            logger.log(1, {"charts/x": 0})
        assert read_metrics(tmp_path)["charts/x"]["step"] == steps
    with pytest.raises(ValueError, match="already holds a run"), disabled(tmp_path):
        pass


def test_unknown_choices_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"mode 'on': allowed offline, online, disabled"):
        RunLogger(tmp_path, mode="on")
    with pytest.raises(ValueError, match="not open"):
        disabled(tmp_path).log(0, {})
    with disabled(tmp_path) as logger, pytest.raises(FileNotFoundError, match="'policy'"):
        logger.log_artifact(tmp_path / "none", "policy", "bundle")


OFFLINE = """
import sys, os
from pathlib import Path
from pikv_agents.tracking import RunLogger
out = Path(sys.argv[1])
before = dict(os.environ)
with RunLogger(out, config={"seed": 1}, name="n", group="g", tags=["t"]) as logger:
    for step in range(3):
        logger.log(step * 100, {"charts/episode_return": -float(step), "cost/J": 2.0})
    logger.log_artifact(out / "run.json", "policy", "bundle", {"dim": 3})
assert {k for k in os.environ if before.get(k) != os.environ[k]} <= {"WANDB_SERVICE"}
print(logger.sync_hint())
"""


def test_offline_stays_in_the_run_folder_and_is_quiet(tmp_path):
    home, out = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "XDG"))} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(out)],
        env=env,
        capture_output=True,
        text=True,
        cwd=home,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list(home.rglob("*")) == []
    hint = done.stdout.strip()
    assert hint.startswith(f"wandb sync {out}")
    stored = next((out / "wandb").glob("offline-run-*/*.wandb"))
    assert b"charts/episode_return" in stored.read_bytes()
    assert read_metrics(out)["cost/J"]["step"] == [0, 100, 200]


def test_wandb_that_cannot_start_is_one_clear_error(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    message = r"W&B could not start in mode 'offline' \(No module"
    with pytest.raises(TrackingError, match=message), RunLogger(tmp_path):
        pass
    assert "WANDB_SILENT" not in os.environ


def test_sb3_values_get_our_names(tmp_path):
    from stable_baselines3.common.logger import Logger

    with disabled(tmp_path) as logger:
        sb3 = Logger(None, [SB3KVWriter(logger)])
        values = {"rollout/ep_rew_mean": -2.0, "time/fps": 900, "time/iterations": 3, "train/value_loss": 0.5}
        for key, value in values.items():
            sb3.record(key, value)
        sb3.record("train/explained_variance", float("nan"))
        sb3.dump(4096)
        sb3.record("train/loss", float("nan"))
        with pytest.raises(ValueError, match="losses/loss"):
            sb3.dump(8192)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["step"] == 4096
    assert row["metrics"] == {
        "charts/episode_return": -2.0,
        "charts/steps_per_second": 900.0,
        "losses/value_loss": 0.5,
    }


@pytest.mark.parametrize(
    ("key", "name"),
    [("cost/J", "cost/J"), ("train/entropy_loss", "losses/entropy_loss"), ("time/total_timesteps", None)],
)
def test_names(key, name):
    assert metric_name(key) == name


def test_a_line_cut_short_is_left_out_and_a_broken_one_is_named(tmp_path):
    good = json.dumps({"step": 1, "time_s": 0, "metrics": {"charts/x": 1.0}})
    path = tmp_path / "metrics.jsonl"
    path.write_text(good + "\n" + good[:20])
    assert read_metrics(path)["charts/x"]["value"] == [1.0]
    path.write_text(good[:20] + "\n" + good + "\n")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_metrics(path)


def test_json_files_are_whole_or_absent(tmp_path):
    path = write_json(tmp_path / "a" / "x.json", {"values": np.arange(2), "folder": tmp_path})
    assert json.loads(path.read_text())["values"] == [0, 1]
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"J": float("nan")})
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    assert json.loads(path.read_text())["values"] == [0, 1]
