"""`train`: from a configuration to a policy, never worse on validation than the heuristic it started from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from pikv_agents.checkpoints import load_checkpoint
from pikv_agents.distil import beyond_ends, distil
from pikv_agents.learners import LEARNERS
from pikv_agents.levers import LeverEnv, Levers, choose_levers
from pikv_agents.presets import TrainConfig
from pikv_agents.rollout import Suite
from pikv_agents.seen import fingerprints, structures
from pikv_agents.survey import SavingReward, Survey, survey
from pikv_agents.tracking import RunLogger, SB3KVWriter, read_metrics, write_json
from pikv_agents.watch import Watch, validation_episodes
from pikv_env.pool import WorkloadPool
from pikv_env.sb3 import make_sb3
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.control_views import make_view

RESULT_FILE, TELEMETRY_FILE = "training.json", "telemetry.safetensors"


@dataclass(frozen=True)
class TrainResult:
    """What a run came to; also in the run folder's `training.json`."""

    run_dir: Path
    start: str
    """The heuristic that it started from."""
    steps: int
    seconds: float
    """Of the learner's loop, evaluations included."""
    best_step: int
    """Of the checkpoint that is kept; 0: the start."""
    start_J: float | None
    """Mean J of the start on validation; None where the run was interrupted before it was known."""
    best_J: float | None
    """Mean J of the kept checkpoint."""
    ratio: float
    """Geometric mean, over validation episodes, of its J over the start's: below 1 it improves."""
    interrupted: bool
    predict_us: float
    """Median microseconds of the learner's own `predict` on one observation, for comparison with the runners."""
    curve: list[dict[str, Any]]
    """Points of `report.schema.CurvePoint`."""

    @property
    def improved(self) -> bool:
        """Whether training found anything better than its start."""
        return self.best_step > 0

    @property
    def checkpoint(self) -> Path:
        """Folder of the kept checkpoint."""
        return self.run_dir / "checkpoints" / "best"

    def sentence(self) -> str:
        """The result in words."""
        if self.start_J is None or self.best_J is None:
            return f"Interrupted before {self.start} was played on validation: it is kept."
        if not self.improved:
            return f"No better than its start: {self.start} is kept (validation J {self.start_J:.4f})."
        return (
            f"Best at step {self.best_step:,}: validation J {self.best_J:.4f} against {self.start_J:.4f} of its "
            f"start {self.start} ({1 - self.ratio:+.1%} by geometric mean)."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with `curve`, `seconds` and `steps_per_second` as the report wants them."""
        values = asdict(self) | {"run_dir": str(self.run_dir), "improved": self.improved}
        return values | {"steps_per_second": self.steps / max(self.seconds, 1e-9), "sentence": self.sentence()}


def train(
    config: TrainConfig,
    library: TraceLibrary,
    run_dir: Path | str,
    tracking: str = "offline",
    progress: bool = True,
    existing: str = "refuse",
    group: str | None = None,
    command: str = "",
) -> TrainResult:
    """Train a policy and leave its best and last checkpoints in `run_dir`.

    Args:
        config: What to train, see `presets`.
        library: Recorded traces.
        run_dir: Folder of the run.
        tracking: W&B mode: offline, online or disabled. Metrics go to `metrics.jsonl` in any case.
        progress: Show a progress bar.
        existing: What to do with a run that is there: refuse, append or replace.
        group: Of runs that differ by seed only.
        command: What was typed, for the record.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once the checkpoints and the result are written.
    """
    run_dir = Path(run_dir)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with a busy core, two threads are tens of times slower
    try:
        described = describe(config, library) | {"command": command}
        logger = RunLogger(run_dir, mode=tracking, config=described, group=group, existing=existing)  # type: ignore[arg-type]
        with logger:
            result = _train(config, library, logger, progress)
    finally:
        torch.set_num_threads(threads)
    write_json(run_dir / RESULT_FILE, result.to_dict())
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def describe(config: TrainConfig, library: TraceLibrary) -> dict[str, Any]:
    """The run's configuration as JSON values: all that a bundle's provenance needs."""
    validation = sorted({episode.family for episode in validation_episodes(config, library)})
    return asdict(config) | {
        "gamma": config.gamma,
        "validation": validation,
        "fingerprints": fingerprints([*config.env.families, *validation]),
        "structures": structures([*config.env.families, *validation]),
        "traces": {"model": library.model, "families": list(library.families), "contents": len(library)},
        "interval_s": config.env.runtime.interval_s,
    }


def _train(config: TrainConfig, library: TraceLibrary, logger: RunLogger, progress: bool) -> TrainResult:
    pool = WorkloadPool(library, config.env, config.seed)
    found = survey(config, pool)
    save_file(golden_sample(found), logger.out_dir / TELEMETRY_FILE)
    env, levers = saving_env(config, pool, found)
    suite = Suite(library, config.env, config.threads)
    watch = Watch(config, suite, validation_episodes(config, library), logger, found.start, levers, progress)
    model = build(config, env, found, levers)
    interrupted, begin = False, time.monotonic()
    try:
        watch.begin(model)
        model.set_logger(Logger(None, [SB3KVWriter(logger)]))
        model.learn(config.steps, callback=watch, log_interval=1)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        watch.finish(model)
        env.close()
    return _result(logger.out_dir, found, watch, model, time.monotonic() - begin, interrupted)


def golden_sample(found: Survey, most: int = 256) -> dict[str, np.ndarray]:
    """Some of the telemetry that the survey saw, evenly chosen: golden pairs are made from it."""
    rows = np.unique(np.linspace(0, len(found.observations) - 1, most).astype(int))
    return {name: np.ascontiguousarray(values[rows]) for name, values in found.telemetry.items()}


def saving_env(config: TrainConfig, pool: WorkloadPool, found: Survey) -> tuple[VecEnv, Levers | None]:
    """The lanes, rewarded by what is saved against the start; their actions are the levers."""
    env: VecEnv = make_sb3(
        "PiKV/Trace-v0",
        config.num_envs,
        library=pool.library,
        config=config.env,
        seed=config.seed,
        pool=pool,
        threads=config.threads,
    )
    view = make_view(config.env.control, int(env.get_attr("num_groups", [0])[0]))
    levers = choose_levers(config.levers, view, found.actions)
    saving = SavingReward(env, found, config.gamma)
    return (saving if levers is None else LeverEnv(saving, levers)), levers


def build(config: TrainConfig, env: VecEnv, found: Survey, levers: Levers | None) -> BaseAlgorithm:
    """The learner, whose first policy does what the start does."""
    actions = found.actions if levers is None else found.actions[:, levers.columns]
    if config.env.control != "discrete":
        actions = beyond_ends(actions)
    model = LEARNERS[config.learner](env, config, (found.mean, found.std), actions[0])
    if np.ptp(actions, axis=0).max() > 0:
        distil(model, found.observations, actions, config.seed)
    return model


def _result(
    run_dir: Path,
    found: Survey,
    watch: Watch,
    model: BaseAlgorithm,
    seconds: float,
    interrupted: bool,
) -> TrainResult:
    best = load_checkpoint(run_dir / "checkpoints" / "best").meta
    return TrainResult(
        run_dir=run_dir,
        start=found.start,
        steps=int(model.num_timesteps),
        seconds=seconds,
        best_step=best["step"],
        start_J=None if np.isnan(watch.start_J) else watch.start_J,
        best_J=best["evaluation"]["J"],
        ratio=best["evaluation"]["ratio"],
        interrupted=interrupted,
        predict_us=predict_us(model),
        curve=learning_curve(read_metrics(run_dir)),
    )


def predict_us(model: BaseAlgorithm, calls: int = 200) -> float:
    """Median microseconds of `predict` on one observation."""
    observation = np.zeros(model.observation_space.shape, np.float32)
    spans = np.empty(calls)
    for k in range(calls):
        begin = time.perf_counter()
        model.predict(observation, deterministic=True)
        spans[k] = time.perf_counter() - begin
    return float(1e6 * np.median(spans))


def learning_curve(series: Mapping[str, Mapping[str, list[float]]]) -> list[dict[str, Any]]:
    """Episode returns by step, with `eval_J` at the steps that were evaluated."""
    returns = series.get("charts/episode_return", {"step": [], "value": []})
    evaluated = series.get("eval/J", {"step": [], "value": []})
    by_step = dict(zip(evaluated["step"], evaluated["value"], strict=True))
    points = {int(s): {"step": int(s), "episode_return": v} for s, v in zip(*returns.values(), strict=True)}
    for step, value in by_step.items():
        known = [p["episode_return"] for s, p in sorted(points.items()) if s <= step] or [-value]
        points.setdefault(int(step), {"step": int(step), "episode_return": known[-1]})["eval_J"] = value
    return [points[step] for step in sorted(points)]
