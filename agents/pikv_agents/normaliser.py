"""The observation normaliser inside the policy: measured once, frozen, exported with the weights."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from pikv_runtime.policy.network import OBSERVATION_CLIP

LEAST_STD = 0.02
"""Smallest standard deviation, as a share of a feature's declared range: what never changed while it was measured
(a price, a λ) must not explode where it differs in use."""


class FrozenNormaliser(BaseFeaturesExtractor):
    """(observation − mean) / std, clipped: the first step of `PolicyNetwork`. Mean and std are buffers."""

    def __init__(self, observation_space: gym.Space, mean: list[float], std: list[float]) -> None:
        super().__init__(observation_space, features_dim=len(mean))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Normalise (n, D)."""
        scaled = (observations - self.mean) / self.std
        return scaled.clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)


class Moments:
    """Running sums of observations, in float64."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.first = np.zeros(size)
        self.second = np.zeros(size)

    def add(self, observations: NDArray[np.float32]) -> None:
        """Count observations (n, D)."""
        values = observations.astype(np.float64)
        self.count += len(values)
        self.first += values.sum(axis=0)
        self.second += (values**2).sum(axis=0)

    def freeze(self, space: gym.spaces.Box) -> tuple[list[float], list[float]]:
        """Mean and standard deviation, the latter at least `LEAST_STD` of a feature's range in `space`."""
        if self.count == 0:
            raise ValueError("no observations were counted")
        mean = self.first / self.count
        std = np.sqrt(np.maximum(self.second / self.count - mean**2, 0.0))
        floor = LEAST_STD * (space.high - space.low).astype(np.float64)
        return mean.tolist(), np.maximum(std, floor).tolist()
