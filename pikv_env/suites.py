"""Named suites: a machine, a model, a load, the axis of pressures and the families of each split, under one name.

A suite is what numbers are compared on. Commands take one by name (`--suite`), and explicit flags change parts of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pikv_env.config import EnvConfig
from pikv_env.workloads import families_of
from pikv_env.workloads.families import SPLITS
from pikv_runtime.registry import Registry

PRESSURES = (0.5, 1.0, 2.0, 4.0)
"""The axis of pressures: working set at int8, the lowest harmless codec, over the cap."""
QUICK_PRESSURE = 2.0
"""The one pressure of quick modes."""
REACHED = 0.95
"""Least share of the asked pressure, by mean over workloads, at which a cell counts as one of that pressure."""


def reached(asked: float, got: float) -> bool:
    """Whether a pressure was reached: caps must hold the longest request, which can keep it lower."""
    return got >= REACHED * asked


def _splits() -> Mapping[str, tuple[str, ...]]:
    return {split: families_of(split) for split in SPLITS}  # type: ignore[arg-type]


@dataclass(frozen=True)
class SuiteSpec:
    """One suite."""

    id: str
    description: str
    profile: str
    geometry: str
    token_scale: int = 1
    ranks: int = 2
    slots: int = 16
    """Requests that run at a time, over all ranks."""
    chunk_tokens: int = 256
    """Most tokens of an iteration, prompt chunks included."""
    load: tuple[float, float] = (0.4, 0.7)
    """Share of capacity offered."""
    host: float = 0.0
    """Host memory of a rank over its cap."""
    share_lossy: bool = False
    """Whether blocks of a lossy context are shared like any other."""
    horizon_s: float = 1800.0
    pressures: tuple[float, ...] = PRESSURES
    families: Mapping[str, tuple[str, ...]] = field(default_factory=_splits)
    """Families by split, as the catalogue has them."""

    def __post_init__(self) -> None:
        if not self.pressures or any(not p > 0 for p in self.pressures):
            raise ValueError(f"suite {self.id!r}: pressures={self.pressures}, at least one, all above 0")
        if set(self.families) - set(SPLITS):
            raise ValueError(f"suite {self.id!r}: splits {sorted(self.families)}, allowed {', '.join(SPLITS)}")

    def all_families(self) -> tuple[str, ...]:
        """The families of all splits."""
        return tuple(family for split in SPLITS for family in self.families.get(split, ()))

    def environment(self) -> dict[str, Any]:
        """The fields of an `EnvConfig` that say on which machine what is served at which load."""
        runtime = replace(
            EnvConfig().runtime,
            slots=self.slots,
            max_batch_tokens=self.chunk_tokens,
            share_lossy=self.share_lossy,
        )
        names = ("profile", "geometry", "token_scale", "ranks", "load", "host")
        return {name: getattr(self, name) for name in names} | {"runtime": runtime}

    def config(self, **changes: Any) -> EnvConfig:
        """The suite as an environment's configuration: its training families, its whole axis of pressures."""
        whole = {
            "families": self.families["train"],
            "pressure": (min(self.pressures), max(self.pressures)),
            "horizon_s": self.horizon_s,
        }
        return replace(EnvConfig(), **(self.environment() | whole | changes))


LAPTOP = SuiteSpec(
    id="laptop",
    description="the embedded model on two cores over gloo: what can also be served for real, anywhere",
    profile="cpu-gloo",
    geometry="embedded",
)
SERVING = SuiteSpec(
    id="serving",
    description="what-if: Qwen3-30B-A3B on two H100 over NVLink, up to 48 requests of 1,000 to 10,000 tokens",
    profile="h100-nvlink8",
    geometry="qwen3-30b-a3b",
    token_scale=8,
    slots=48,
)
SERVING_HOST = replace(
    SERVING,
    id="serving-host",
    description="suite serving, with host memory of four times the cap for cached blocks",
    host=4.0,
)
SERVING_LOSSY = replace(
    SERVING,
    id="serving-lossy",
    description="suite serving, sharing blocks computed over a compressed context, as engines with an fp8 cache do",
    share_lossy=True,
)
OFFLOAD = replace(
    SERVING,
    id="offload",
    description="what-if: Qwen3-30B-A3B on two L40S over PCIe, up to 48 requests, host memory of eight times the cap",
    profile="l40s-pcie4",
    host=8.0,
)
SUITES: Registry[SuiteSpec] = Registry("suite")
for _suite in (LAPTOP, SERVING, SERVING_HOST, SERVING_LOSSY, OFFLOAD):
    SUITES.add(_suite.id, _suite)
