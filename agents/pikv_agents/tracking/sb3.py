"""Stable-Baselines3's logger values under this project's metric names; needs no TensorBoard."""

from __future__ import annotations

import math
from typing import Any

from stable_baselines3.common.logger import KVWriter

from pikv_agents.tracking.logger import RunLogger
from pikv_agents.tracking.metrics import METRIC_GROUPS

NAMES = {
    "rollout/ep_rew_mean": "charts/episode_return",
    "rollout/ep_len_mean": "charts/episode_length",
    "time/fps": "charts/steps_per_second",
}
# Undefined, and NaN by Stable-Baselines3's own definition, where all returns of a batch are equal.
_MAY_BE_UNDEFINED = ("losses/explained_variance",)


def metric_name(key: str) -> str | None:
    """Our name of a Stable-Baselines3 key; None for what a row holds anyway (time, steps, iterations)."""
    if key in NAMES:
        return NAMES[key]
    if key.startswith("train/"):
        return "losses/" + key.removeprefix("train/")
    return key if key.startswith(METRIC_GROUPS) else None


class SB3KVWriter(KVWriter):
    """`model.set_logger(Logger(None, [SB3KVWriter(logger)]))`; closing it leaves the run open."""

    def __init__(self, logger: RunLogger) -> None:
        self.logger = logger

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Forward one dump; the logger refuses a NaN loss, so a diverged run stops with the loss's name."""
        metrics = {}
        for key, value in key_values.items():
            name = metric_name(key)
            if name is None or isinstance(value, str):
                continue
            if name in _MAY_BE_UNDEFINED and not math.isfinite(value):
                continue
            metrics[name] = value
        if metrics:
            self.logger.log(step, metrics)

    def close(self) -> None:
        """Nothing to close: the run belongs to whoever opened it."""
