"""How fast a learner gets through an environment: collecting and updating together, as training does it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from pikv_agents.distil import beyond_ends
from pikv_agents.learners import LEARNERS
from pikv_agents.levers import LeverEnv, choose_levers
from pikv_agents.presets import TrainConfig
from pikv_env.sb3 import TraceVecEnv
from pikv_runtime.contract import Control
from pikv_runtime.control_views import make_view


@dataclass(frozen=True)
class Learning:
    """PPO on one environment."""

    rates: tuple[float, ...]
    """Steps per second of each repeat."""
    stepping: float
    """Share of the time that the environment took: actions decoded, lanes stepped, observations written."""
    updating: float
    """Share that gradient steps took; the rest is the policy's forward passes and the rollout buffer."""

    @property
    def steps_per_s(self) -> float:
        """Median of the repeats."""
        return median(self.rates)


class _Stopwatch:
    """Seconds spent in a method, by name, while it is wrapped."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, target: Any, name: str) -> None:
        """Time every call of `target.name` from now on."""
        method = getattr(target, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

        setattr(target, name, timed)


def learning_speed(
    view: TraceVecEnv, config: TrainConfig, rollouts: int, repeats: int, on_repeat: Callable[[], None] | None = None
) -> Learning:
    """Steps per second of PPO over `rollouts` rollouts, after one that warms up.

    Learned are `config.levers`, all actions where it names none, from the neutral control on. No callback, evaluation
    or log: the rate at which a curve advances between two points. Updates make all of their passes: leaving some early
    because the policy has moved enough (`target_kl`) would be faster.
    """
    import torch

    torch.set_num_threads(1)  # with a busy core beside it, a second thread makes updates many times slower
    env, start = _levers_from_neutral(view, config)
    size = view.observation_space.shape[0]
    config = replace(config, steps=10**9, num_envs=view.num_envs, target_kl=math.inf)
    model = LEARNERS["ppo"](env, config, ([0.0] * size, [1.0] * size), start)
    steps, watch = config.rollout * view.num_envs, _Stopwatch()
    model.learn(steps, reset_num_timesteps=False)
    watch.wrap(env, "step")
    watch.wrap(model, "train")
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        model.learn(steps * rollouts, reset_num_timesteps=False)
        rates.append(steps * rollouts / (time.perf_counter() - began))
        if on_repeat is not None:
            on_repeat()
    total = sum(steps * rollouts / rate for rate in rates)
    return Learning(tuple(rates), watch.seconds["step"] / total, watch.seconds["train"] / total)


def _levers_from_neutral(view: TraceVecEnv, config: TrainConfig) -> tuple[VecEnv, np.ndarray]:
    """The environment whose actions are the config's levers, and the actions that ask for nothing."""
    groups = view.batch.num_groups
    actions, neutral = make_view(config.env.control, groups), Control.neutral(groups)
    start = actions.encode(neutral.groups[None], neutral.globals[None])
    levers = choose_levers(config.levers, actions, start)
    if levers is None:
        return view, beyond_ends(start)[0]
    return LeverEnv(view, levers), beyond_ends(start[:, levers.columns])[0]
