"""Lazy requantisation: bf16 until pressed, then int8, then int4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pikv_runtime.contract import Control, GlobalFeature, Telemetry
from pikv_runtime.controllers.base import Controller, allow_demotion, check_range

_LEVELS = (1.0, 2.0, 4.0)  # what pressure may do: nothing, int8, int4


@dataclass(frozen=True)
class Lazy(Controller):
    """Lets pressure demote to int8, then to int4, as the bytes that cannot simply be dropped grow.

    Pressure counts net of cached blocks, which go first. A level is left only `hysteresis` below the
    threshold that entered it; the level in force is read from telemetry: the controller has no memory.
    """

    int8_at: float = 0.75
    """Net pressure from which pages may go to int8."""
    int4_at: float = 0.9
    """Net pressure from which pages may go to int4."""
    hysteresis: float = 0.2
    """How far net pressure must fall below a threshold before its level is left."""

    kind: ClassVar[str] = "lazy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("int8_at", self.int8_at, 0, 1)
        check_range("int4_at", self.int4_at, self.int8_at, 1)
        check_range("hysteresis", self.hysteresis, 0, 1)

    def write(self, telemetry: Telemetry, out: Control) -> None:
        """Allow the demotion that this pressure calls for."""
        told = telemetry.globals
        pressure = float(told[GlobalFeature.PRESSURE] - told[GlobalFeature.CACHED_SHARE])
        # log2: 0, 1 or 2 of our own; anything in between after another policy.
        in_force = float(told[GlobalFeature.PREVIOUS_R_PRESSURE])
        level = 0
        for step, threshold in enumerate((self.int8_at, self.int4_at), start=1):
            held = in_force >= step - 0.5
            if pressure >= threshold - self.hysteresis * held:
                level = step
        allow_demotion(out, _LEVELS[level])
