"""Ask for more as pressure grows: ratio and eviction linear in net pressure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pikv_runtime.contract import Control, GlobalFeature, Telemetry
from pikv_runtime.controllers.base import Controller, allow_demotion, ask, check_column, check_range


@dataclass(frozen=True)
class PressureProportional(Controller):
    """Ratio and eviction grow linearly from `start` to full pressure.

    Pressure counts net of cached blocks, which go first, plus `queue_gain` times the waiting prompts.
    """

    start: float = 0.5
    """Net pressure below which nothing is asked."""
    ratio: float = 4.0
    """Ratio asked at full pressure."""
    evict: float = 0.1
    """Eviction asked at full pressure, per interval."""
    queue_gain: float = 0.25
    """Weight of the waiting prompts (log1p of their share of the cap)."""

    kind: ClassVar[str] = "pressure_proportional"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("start", self.start, 0, 0.99)
        check_column("ratio", self.ratio, "compression_ratio")
        check_column("evict", self.evict, "evict_fraction")
        check_range("queue_gain", self.queue_gain, 0, 10)

    def write(self, telemetry: Telemetry, out: Control) -> None:
        """Ask in proportion."""
        told = telemetry.globals
        pressure = float(told[GlobalFeature.PRESSURE] - told[GlobalFeature.CACHED_SHARE])
        pressure += self.queue_gain * float(told[GlobalFeature.QUEUED_PROMPT])
        share = min(max((pressure - self.start) / (1 - self.start), 0.0), 1.0)
        ratio = 1 + (self.ratio - 1) * share
        ask(out, ratio, self.evict * share)
        allow_demotion(out, ratio)
