"""Nothing lossy, ever: at the cap, cached blocks go, then admission stops, then requests are preempted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.controllers.base import Controller


@dataclass(frozen=True)
class CappedExact(Controller):
    """Ratio 1, no eviction, everything read, no demotion: the neutral control with a ranker."""

    kind: ClassVar[str] = "capped_exact"

    def write(self, telemetry: Telemetry, out: Control) -> None:
        """Neutral is exact."""
