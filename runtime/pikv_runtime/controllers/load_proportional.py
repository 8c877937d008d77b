"""Read less as more requests run or wait: the heuristic a serving engineer would try first when decoding is slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pikv_runtime.contract import Control, GlobalControl, GlobalFeature, Telemetry
from pikv_runtime.controllers.base import Controller, allow_demotion, check_column, check_range


@dataclass(frozen=True)
class LoadProportional(Controller):
    """Fan-out falls linearly from 1, when idle, to `fan_out`, when `busy_at` of the slots run or `queued_at` wait.

    Pressure may demote to `r_pressure`; cached blocks keep to `cached_share`.
    """

    fan_out: float = 0.35
    """Fan-out under full load."""
    busy_at: float = 0.8
    """Share of the slots that counts as full load."""
    queued_at: float = 3.0
    """Waiting requests that count as full load."""
    cached_share: float = 0.5
    """Most that cached blocks may hold, as a share of the cap."""
    r_pressure: float = 2.0
    """How far pressure may demote."""

    kind: ClassVar[str] = "load_proportional"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_column("fan_out", self.fan_out, "fan_out")
        check_range("busy_at", self.busy_at, 0.05, 1)
        check_range("queued_at", self.queued_at, 0.1, 1000)
        check_column("cached_share", self.cached_share, "cached_share")
        check_column("r_pressure", self.r_pressure, "r_pressure")

    def write(self, telemetry: Telemetry, out: Control) -> None:
        """Ask in proportion."""
        told = telemetry.globals
        running = float(told[GlobalFeature.RUNNING_SHARE]) / self.busy_at
        queued = float(told[GlobalFeature.QUEUED_REQUESTS]) / float(np.log1p(self.queued_at))
        load = min(max(running, queued, 0.0), 1.0)
        out.globals[GlobalControl.FAN_OUT] = 1 + (self.fan_out - 1) * load
        out.globals[GlobalControl.CACHED_SHARE] = self.cached_share
        allow_demotion(out, self.r_pressure)
