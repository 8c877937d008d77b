"""What all control views share: ranges, sanitising and the interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.contract import (
    GLOBAL_CONTROLS,
    GLOBAL_FEATURES,
    GROUP_CONTROLS,
    GROUP_FEATURES,
    Array,
    Column,
)

Numbers = NDArray[Any]


def bounds(columns: tuple[Column, ...]) -> tuple[Array, Array]:
    """Lower and upper ends of `columns`."""
    return np.array([c.low for c in columns], np.float32), np.array([c.high for c in columns], np.float32)


GROUP_BOUNDS = bounds(GROUP_FEATURES)
GLOBAL_BOUNDS = bounds(GLOBAL_FEATURES)
CONTROL_GROUP_BOUNDS = bounds(GROUP_CONTROLS)
CONTROL_GLOBAL_BOUNDS = bounds(GLOBAL_CONTROLS)


def sanitise(values: Array, bounds: tuple[Array, Array], out: Array | None = None) -> Array:
    """Clip to the declared ranges, NaN to 0; writes `out` if given, never `values`."""
    out = np.minimum(np.maximum(values, bounds[0]), bounds[1], out=out)  # twice as fast as clip here
    np.copyto(out, 0.0, where=np.isnan(out))
    return out


def from_unit(actions: Numbers, bounds: tuple[Array, Array]) -> Numbers:
    """[-1, 1] to `bounds`, affinely."""
    return bounds[0] + (bounds[1] - bounds[0]) * (actions + 1) / 2


def to_unit(values: Numbers, bounds: tuple[Array, Array]) -> Numbers:
    """`bounds` to [-1, 1], affinely."""
    return 2 * (values - bounds[0]) / (bounds[1] - bounds[0]) - 1


@dataclass(frozen=True)
class ControlView(ABC):
    """One way to read numbers as a control. `num_groups` is needed by views whose size depends on it."""

    num_groups: int | None = None

    name: ClassVar[str]
    observes_groups: ClassVar[bool] = False

    @abstractmethod
    def action_names(self, num_groups: int | None = None) -> list[str]:
        """Names of the action's entries, in order."""

    @abstractmethod
    def decode(self, actions: Numbers, groups: Array, globals_: Array, out_groups: Array, out_globals: Array) -> None:
        """Write the controls (n, N, 3) and (n, 17) that `actions` (n, A) ask for under this telemetry."""

    @abstractmethod
    def encode(self, groups: Array, globals_: Array) -> Numbers:
        """The actions (n, A) whose controls come nearest to `groups` (n, N, 3) and `globals_` (n, 17)."""

    @property
    def num_actions(self) -> int:
        """Length of the action vector."""
        return len(self.action_names())

    @property
    def num_outputs(self) -> int:
        """Length of a network's output: one number per action, or one logit per choice."""
        return self.num_actions

    @property
    def action_low(self) -> Array:
        """Lower ends of a continuous action."""
        return np.full(self.num_actions, -1.0, np.float32)

    @property
    def action_high(self) -> Array:
        """Upper ends of a continuous action."""
        return np.full(self.num_actions, 1.0, np.float32)

    def act(self, outputs: Numbers) -> Numbers:
        """Network outputs (n, `num_outputs`) as actions; NaN stays NaN so that the guard can see it."""
        return np.clip(outputs, -1.0, 1.0)
