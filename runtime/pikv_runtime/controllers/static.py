"""One fixed setting, whatever happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pikv_runtime.contract import Control, GlobalControl, Telemetry
from pikv_runtime.controllers.base import Controller, ask, check_column


@dataclass(frozen=True)
class Static(Controller):
    """A constant control, the same for all groups."""

    ratio: float = 1.0
    """Asked mean compression ratio of live pages."""
    evict: float = 0.0
    """Share of evictable live bytes freed every interval."""
    fan_out: float = 1.0
    """Share of a request's other resident pages that a query reads."""
    window: float = 2.0
    """Recent pages always read."""
    cached_share: float = 1.0
    """Most of the cap that cached blocks may hold."""
    cached_ratio: float = 1.0
    """Asked mean ratio of cached blocks."""
    demote: bool = False
    """Whether pressure may demote live pages."""
    r_pressure: float = 1.0
    """How far pressure may demote."""

    kind: ClassVar[str] = "static"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_column("ratio", self.ratio, "compression_ratio")
        check_column("evict", self.evict, "evict_fraction")
        for name in ("fan_out", "window", "cached_share", "cached_ratio", "r_pressure"):
            check_column(name, getattr(self, name), name)

    def write(self, telemetry: Telemetry, out: Control) -> None:
        """Write the constants."""
        ask(out, self.ratio, self.evict)
        out.globals[: GlobalControl.PAGE_RECENCY] = (
            self.fan_out,
            self.window,
            self.cached_share,
            self.cached_ratio,
            self.r_pressure if self.demote else 1.0,
        )
