"""Uniform controls: what knowing nothing scores. For comparison only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from pikv_runtime.contract import Control, GlobalControl, Telemetry
from pikv_runtime.controllers.base import Controller
from pikv_runtime.views.base import CONTROL_GLOBAL_BOUNDS, CONTROL_GROUP_BOUNDS, from_unit


@dataclass(frozen=True)
class UniformRandom(Controller):
    """Every number uniform over its range, except the ranker's weights; a stream fixed by `seed`."""

    seed: int = 0
    """Seed of the stream."""
    rng: np.random.Generator = field(init=False, repr=False, compare=False)

    kind: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rng", np.random.default_rng(self.seed))

    def write(self, telemetry: Telemetry, out: Control) -> None:
        """Draw."""
        steered = slice(0, int(GlobalControl.PAGE_RECENCY))
        low, high = CONTROL_GLOBAL_BOUNDS
        out.groups[:] = from_unit(self.rng.uniform(-1, 1, out.groups.shape), CONTROL_GROUP_BOUNDS)
        units = self.rng.uniform(-1, 1, GlobalControl.PAGE_RECENCY)
        out.globals[steered] = from_unit(units, (low[steered], high[steered]))
