"""Learners by name: Stable-Baselines3 algorithms, set up so that training starts from a given action.

To add one: a function from (environment, config, normaliser, start action) to a model, and a line in `LEARNERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from pikv_agents.activation import Tanh
from pikv_agents.normaliser import FrozenNormaliser
from pikv_agents.presets import TrainConfig
from pikv_runtime.control_views import make_view
from pikv_runtime.registry import Registry

Normaliser = tuple[list[float], list[float]]
Learner = Callable[[VecEnv, TrainConfig, Normaliser, np.ndarray], BaseAlgorithm]

LEARNERS: Registry[Learner] = Registry("learner")
EXPORTABLE = ("ppo", "a2c")
"""Learners whose deterministic action is a clipped linear output, which is what a bundle can say."""
RISKY = ("compression_ratio", "evict_fraction", "cached_ratio")
HIDDEN_LEVEL = 0.5
"""Typical magnitude of a hidden unit under tanh."""
START_LOGIT = 3.0
"""Head start of the start's choices in discrete control."""


def _falling(rate: float) -> Callable[[float], float]:
    return lambda remaining: rate * (0.1 + 0.9 * remaining)


def _policy(config: TrainConfig, normaliser: Normaliser) -> dict[str, Any]:
    mean, std = normaliser
    return {
        "features_extractor_class": FrozenNormaliser,
        "features_extractor_kwargs": {"mean": mean, "std": std},
        "activation_fn": Tanh,
    }


def _shared(config: TrainConfig) -> dict[str, Any]:
    return {
        "learning_rate": _falling(config.learning_rate),
        "gamma": config.gamma,
        "seed": config.seed,
        "device": "cpu",
        "verbose": 0,
    }


def _on_policy(config: TrainConfig, normaliser: Normaliser) -> dict[str, Any]:
    hidden = list(config.hidden)
    kwargs = {**_policy(config, normaliser), "net_arch": {"pi": hidden, "vf": list(hidden)}}
    held = max(1, round(config.hold_s / config.env.runtime.interval_s)) if config.env.control != "discrete" else 0
    if config.hold_s > 0 and held > 1:
        # State-dependent exploration (arXiv 2005.05719): noise is linear in the last hidden layer, fixed for a while.
        sde = {"use_sde": True, "sde_sample_freq": held}
    else:
        sde = {}
    return {
        **sde,
        **_shared(config),
        "n_steps": config.rollout,
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.entropy,
        "policy_kwargs": kwargs,
    }


def _start_at(model: BaseAlgorithm, action: np.ndarray) -> None:
    """The first policy: `action` everywhere (the likeliest choice, in discrete control)."""
    net = model.policy.action_net
    bias = torch.as_tensor(action, dtype=torch.float32)
    if isinstance(model.action_space, spaces.MultiDiscrete):
        bias = torch.zeros(net.bias.shape)
        starts = np.concatenate([[0], np.cumsum(model.action_space.nvec)[:-1]])
        bias[starts + action.astype(np.int64)] = START_LOGIT
    with torch.no_grad():
        net.weight.mul_(0.1)
        net.bias.copy_(bias)
        model.policy.value_net.weight.mul_(0.1)  # at the start, savings are zero


def noise_of(config: TrainConfig, actions: int) -> np.ndarray:
    """First standard deviation of each action (A,): `noise`, less where an action loses fidelity for good."""
    std = np.full(actions, config.noise)
    if config.env.control == "coef":
        names = config.levers or make_view("coef").action_names()
        std[[name.startswith(RISKY) for name in names]] *= config.caution
    return std


def _explore(model: BaseAlgorithm, config: TrainConfig) -> None:
    """Set the first noise, see `noise_of`."""
    log_std = getattr(model.policy, "log_std", None)
    if log_std is None:
        return
    std = noise_of(config, log_std.shape[-1])
    if log_std.ndim == 2:  # by hidden unit and action: the units' shares add up
        std = std / (HIDDEN_LEVEL * np.sqrt(log_std.shape[0]))
    with torch.no_grad():
        log_std.copy_(torch.as_tensor(np.log(std), dtype=torch.float32).expand_as(log_std))


def _ppo(env: VecEnv, config: TrainConfig, normaliser: Normaliser, start: np.ndarray) -> BaseAlgorithm:
    model = PPO(
        "MlpPolicy",
        env,
        batch_size=min(config.batch_size, config.rollout * config.num_envs),
        n_epochs=config.epochs,
        clip_range=config.clip,
        target_kl=config.target_kl,
        **_on_policy(config, normaliser),
    )
    _start_at(model, start)
    _explore(model, config)
    return model


def _a2c(env: VecEnv, config: TrainConfig, normaliser: Normaliser, start: np.ndarray) -> BaseAlgorithm:
    model = A2C("MlpPolicy", env, use_rms_prop=False, **_on_policy(config, normaliser))
    _start_at(model, start)
    _explore(model, config)
    return model


def _sac(env: VecEnv, config: TrainConfig, normaliser: Normaliser, start: np.ndarray) -> BaseAlgorithm:
    if not isinstance(env.action_space, spaces.Box):
        raise ValueError("learner 'sac' needs a continuous control view: allowed coef, box")
    kwargs = {**_policy(config, normaliser), "net_arch": list(config.hidden)}
    model = SAC(
        "MlpPolicy",
        env,
        batch_size=min(config.batch_size, 256),
        buffer_size=min(config.steps, 200_000),
        learning_starts=config.rollout * config.num_envs,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs=kwargs,
        **_shared(config),
    )
    with torch.no_grad():  # SAC squashes: the mean is tanh(mu)
        model.actor.mu.weight.mul_(0.01)
        model.actor.mu.bias.copy_(torch.atanh(torch.as_tensor(start).clamp(-0.97, 0.97)))
    return model


LEARNERS.add("ppo", _ppo)
LEARNERS.add("a2c", _a2c)
LEARNERS.add("sac", _sac)
