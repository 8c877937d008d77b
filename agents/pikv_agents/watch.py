"""What happens beside learning: progress, evaluation on validation workloads, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from pikv_agents.checkpoints import Checkpoint, save_checkpoint
from pikv_agents.levers import Levers
from pikv_agents.presets import TrainConfig
from pikv_agents.rollout import Episode, Learned, Suite, mean_costs
from pikv_agents.tracking import RunLogger
from pikv_env.traces.library import TraceLibrary
from pikv_env.workloads.families import FAMILIES, families_of
from pikv_runtime.control_views import make_view

VALIDATION_SEEDS = 5_000
"""Added to validation seeds: these workloads are neither trained on nor reported."""


def validation_episodes(config: TrainConfig, library: TraceLibrary) -> list[Episode]:
    """Every validation family, seed and pressure."""
    playable = [f for f in families_of("validation") if set(FAMILIES[f].kinds) <= set(library.families)]
    families = config.validation or tuple(playable) or config.env.families
    return [
        Episode(family, VALIDATION_SEEDS + seed, pressure)
        for family in families
        for seed in config.validation_seeds
        for pressure in config.validation_pressures
    ]


class Watch(BaseCallback):
    """Evaluates at the start, then evenly between updates; keeps the checkpoint of least relative J.

    Relative J is the geometric mean over episodes of J over the start's: as in training, overload does not drown
    the rest. The start itself is the first candidate, so what is kept is never worse than it on validation.
    """

    def __init__(
        self,
        config: TrainConfig,
        suite: Suite,
        episodes: Sequence[Episode],
        run: RunLogger,
        start: str,
        levers: Levers | None,
        progress: bool,
    ) -> None:
        super().__init__()
        self.config, self.suite, self.episodes, self.run = config, suite, list(episodes), run
        self.start, self.levers, self.progress = start, levers, progress
        self.start_J = float("nan")
        self.best = float("inf")
        self._base = np.ones(len(self.episodes))
        self._due = 0.0
        self._bar: tqdm | None = None

    def begin(self, model: BaseAlgorithm) -> None:
        """Play the start on validation and keep it as the first candidate."""
        self._bar = tqdm(total=self.config.steps, unit="step", desc="training", disable=not self.progress, leave=False)
        self._base = np.array([o.score.J for o in self.suite.run(self.start, self.episodes)])
        self.start_J = float(self._base.mean())
        self._evaluate(model)

    def _on_step(self) -> bool:
        if self._bar is not None:
            self._bar.update(min(self.num_timesteps, self.config.steps) - self._bar.n)
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._due > 0:
            self._evaluate(self.model)

    def _on_rollout_end(self) -> None:
        self.logger.record("charts/saving", self.training_env.take_saving())  # type: ignore[attr-defined]

    def _on_training_end(self) -> None:
        self._evaluate(self.model)

    def _evaluate(self, model: BaseAlgorithm) -> None:
        """Play the deterministic policy on validation; keep it if it is the best so far."""
        step = int(model.num_timesteps)
        self._due = step + self.config.steps / self.config.evaluations
        groups = self.suite.batch(self.episodes[0].family, self.episodes[0].seed, 1).num_groups
        view = make_view(self.config.env.control, groups)
        outcomes = self.suite.run(lambda: Learned(model, view, self.levers), self.episodes)
        costs = mean_costs(outcomes)
        ratio = float(np.exp(np.mean(np.log([o.score.J for o in outcomes] / self._base))))
        self.run.log(step, {f"eval/{name}": v for name, v in costs.items()} | {"eval/ratio_to_start": ratio})
        evaluation = costs | {"ratio": ratio}
        if ratio < self.best:
            self.best = ratio
            self._save(model, "best", evaluation)
        if self._bar is not None:
            self._bar.set_postfix_str(f"validation J {costs['J']:.3f}, {ratio - 1:+.1%} to start")

    def finish(self, model: BaseAlgorithm) -> None:
        """Write the last checkpoint, and a best one if there is none yet; close the bar."""
        if self._bar is not None:
            self._bar.close()
        unknown = {"J": None if np.isnan(self.start_J) else self.start_J, "ratio": 1.0}
        self._save(model, "last", None)
        if not np.isfinite(self.best):
            self._save(model, "best", unknown)

    def _save(self, model: BaseAlgorithm, name: str, evaluation: dict[str, float] | None) -> None:
        control = self.config.env.control
        # Pools may differ in size, never in their control groups: any lane tells how many there are.
        groups = int(model.get_env().get_attr("num_groups", [0])[0])
        meta = {
            "learner": self.config.learner,
            "view": control,
            "num_groups": groups,
            "hidden": list(self.config.hidden),
            "step": int(model.num_timesteps),
            "seed": self.config.seed,
            "start": self.start,
            "levers": None if self.levers is None else asdict(self.levers),
            "evaluation": evaluation,
        }
        tensors = model.policy.state_dict()
        save_checkpoint(self.run.out_dir / "checkpoints" / name, Checkpoint(tensors, meta))
