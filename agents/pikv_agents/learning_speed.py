"""How fast a learner gets through the environment: collecting and updating together, as training does it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pikv_agents.learners import LEARNERS
from pikv_agents.presets import TrainConfig
from pikv_env.sb3 import TraceVecEnv


def learning_speed(
    view: TraceVecEnv, config: TrainConfig, rollouts: int, repeats: int, on_repeat: Callable[[], None] | None = None
) -> list[float]:
    """Steps per second of PPO over `rollouts` rollouts, after one that warms up; `repeats` figures.

    All actions move, whatever `config.levers` says. No callback, evaluation or log: the rate at which a curve advances
    between two points.
    """
    import torch

    torch.set_num_threads(1)  # with a busy core beside it, a second thread makes updates many times slower
    size = view.observation_space.shape[0]
    start = np.zeros(view.action_space.shape[0], np.float32)
    identity = ([0.0] * size, [1.0] * size)
    model = LEARNERS["ppo"](view, replace(config, steps=10**9, levers=()), identity, start)
    steps = config.rollout * view.num_envs
    model.learn(steps, reset_num_timesteps=False)
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        model.learn(steps * rollouts, reset_num_timesteps=False)
        rates.append(steps * rollouts / (time.perf_counter() - began))
        if on_repeat is not None:
            on_repeat()
    return rates
