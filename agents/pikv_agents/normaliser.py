"""The observation normaliser inside the policy: measured once, frozen, exported with the weights."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from pikv_runtime.policy.network import OBSERVATION_CLIP

LEAST_STD = 0.02
"""Smallest standard deviation, as a share of a feature's declared range: what hardly changed while it was measured
must not explode where it differs in use."""
NEVER_VARIED = 1e-6
"""Standard deviations below this share of the range count as none: nothing can be learned about such a feature
(a price, with one machine; a link, with one rank), so the policy is made blind to it."""
BLIND = 1e6
"""Standard deviation of such a feature, in its declared range: whatever it is in use, it normalises to 0."""


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
        """Mean and standard deviation: at least `LEAST_STD` of a feature's range in `space`, `BLIND` of it if it
        never varied."""
        if self.count == 0:
            raise ValueError("no observations were counted")
        mean = self.first / self.count
        std = np.sqrt(np.maximum(self.second / self.count - mean**2, 0.0))
        span = (space.high - space.low).astype(np.float64)
        kept = np.where(std < NEVER_VARIED * span, BLIND * span, np.maximum(std, LEAST_STD * span))
        return mean.tolist(), kept.tolist()
