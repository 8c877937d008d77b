"""What all controllers share: a heuristic is a policy that keeps no state and needs no training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

from pikv_runtime.block_rules import make_block_rule
from pikv_runtime.contract import (
    GLOBAL_CONTROLS,
    GROUP_CONTROLS,
    Column,
    Control,
    GlobalControl,
    GroupControl,
    Telemetry,
)
from pikv_runtime.rankers import RANKERS, apply_ranker

_NEUTRAL = Control.neutral(1)
_COLUMNS: dict[str, Column] = {c.name: c for c in GROUP_CONTROLS + GLOBAL_CONTROLS}


@dataclass(frozen=True)
class Controller(ABC):
    """Says how much to keep and at which ratio; its ranker says of what. Fields are hyperparameters."""

    ranker: str = "lru"
    """Order of eviction and demotion: a name in `RANKERS`."""
    block_rule: str = ""
    """Order of cached blocks: a spec of `pikv_runtime.block_rules`; empty: the runtime's."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        RANKERS[self.ranker]
        if self.block_rule:
            make_block_rule(self.block_rule)

    @property
    def name(self) -> str:
        """The spec that `make_policy` turns into this controller, without parameters at their default."""
        own = [f for f in fields(self) if f.init and f.name not in ("ranker", "block_rule")]
        changed = [f for f in own if getattr(self, f.name) != f.default]
        params = ",".join(f"{f.name}={getattr(self, f.name)}" for f in changed)
        rule = f"+{self.block_rule}" if self.block_rule else ""
        return f"{self.kind}{':' if params else ''}{params}/{self.ranker}{rule}"

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """The full control for the next interval, written into `out` if given."""
        if out is None:
            out = Control.zeros(len(telemetry.groups))
        out.groups[:] = _NEUTRAL.groups
        out.globals[:] = _NEUTRAL.globals
        apply_ranker(self.ranker, out)
        self.write(telemetry, out)
        return out

    @abstractmethod
    def write(self, telemetry: Telemetry, out: Control) -> None:
        """Change `out`, neutral but for its ranker, to what this controller asks for."""


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless `low <= value <= high`."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: allowed {low}..{high}")


def check_column(name: str, value: float, column: str) -> None:
    """Raise ValueError unless `value` is legal for a column of the control."""
    check_range(name, value, _COLUMNS[column].low, _COLUMNS[column].high)


def allow_demotion(out: Control, r_pressure: float) -> None:
    """Over the cap, pages may be demoted up to `r_pressure`; 1 forbids it."""
    out.globals[GlobalControl.R_PRESSURE] = r_pressure


def ask(out: Control, ratio: float, evict: float) -> None:
    """Ask the same ratio and eviction of all groups."""
    out.groups[:, GroupControl.COMPRESSION_RATIO] = ratio
    out.groups[:, GroupControl.EVICT_FRACTION] = evict
