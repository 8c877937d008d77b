"""Configuration of the environments: one frozen dataclass, checked on construction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.objective import LAMBDA1, LAMBDA2
from pikv_runtime.shard_maps import make_shard_map

TRAIN_FAMILIES = ("facts-poisson", "code-bursty", "prose-diurnal", "copy-onoff")

MOST_HOST = 1000.0
MOST_RANKS = 127  # the ledger keeps a page's rank in one signed byte


@dataclass(frozen=True)
class EnvConfig:
    """What an episode is made of. A pair (low, high) is drawn from, per episode; equal ends fix it."""

    families: tuple[str, ...] = TRAIN_FAMILIES
    """Workload families episodes are drawn from."""
    profile: str = "cpu-gloo"
    """Prices: a name in `pikv_runtime.profiles`, or a JSON file of `pikv calibrate`."""
    geometry: str = "embedded"
    """Shape of the model being priced: a name in `pikv_runtime.profiles`, or a JSON file. Traces of another model are
    folded onto it (`pikv_env.folding`): a what-if."""
    token_scale: int = 1
    """Tokens of the priced model that one recorded token stands for."""
    ranks: int = 1
    """Ranks that pages are sharded over."""
    control: str = "coef"
    """Control view: coef, box or discrete."""
    pressure: tuple[float, float] = (0.5, 4.0)
    """Working set (at int8, the lowest harmless codec) over the cap; drawn log-uniformly."""
    load: tuple[float, float] = (0.4, 0.7)
    """Share of capacity that the workload offers."""
    host: float = 0.0
    """Host memory of each rank for evicted cached blocks, over its cap on the device; 0: `runtime.host_bytes`."""
    load_of: Literal["time", "slots"] | None = None
    """What `load` is a share of: the machine's time, or its slots. None: slots where the profile is hardware constants,
    whose decoding is bound by weights, so that one request keeps the machine busy; else time."""
    lambda1: tuple[float, float] = (LAMBDA1, LAMBDA1)
    """Price of memory; drawn log-uniformly."""
    lambda2: tuple[float, float] = (LAMBDA2, LAMBDA2)
    """Price of lost fidelity; drawn log-uniformly."""
    horizon_s: float = 1800.0
    """Arrivals stop here; then the queue drains."""
    drain: float = 0.5
    """Longest drain, as a share of the horizon; who is unserved then is charged."""
    workloads: int = 12
    """Distinct workloads prepared; episodes draw from them."""
    fidelity_floor: float | None = None
    """Least F that an episode may have; loss below it is a cost beside the reward, see `constraints.py`."""
    slo: float | None = None
    """Least share of requests within both objectives of their class; the others are a cost beside the reward."""
    runtime: RuntimeConfig = field(
        default_factory=lambda: RuntimeConfig(codec="bf16", read="sparse", router="centroid", slots=16, blocks=4096)
    )
    """The runtime that is simulated; its `cap_bytes` is set by the pressure, and `host_bytes` by `host` where given."""

    def __post_init__(self) -> None:
        if not self.families:
            raise ValueError("families=(): at least one family is needed")
        for name in ("pressure", "load", "lambda1", "lambda2"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name}=({low}, {high}): allowed 0 < low <= high, both finite")
        if self.load[1] > 0.85:
            raise ValueError(f"load up to {self.load[1]}: at most 0.85, or U has no fair latency")
        for name in ("fidelity_floor", "slo"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: allowed 0 to 1, or None for no constraint")
        if not 0 <= self.host <= MOST_HOST:
            raise ValueError(f"host={self.host}: allowed 0 to {MOST_HOST:g}, host memory over the cap on the device")
        if self.host > 0 and self.runtime.host_bytes:
            raise ValueError(f"host={self.host} and runtime.host_bytes={self.runtime.host_bytes}: give one of them")
        if self.load_of not in (None, "time", "slots"):
            raise ValueError(f"load_of={self.load_of!r}: allowed are 'time', 'slots' and None")
        for name in ("token_scale", "ranks", "workloads"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a whole number")
        if self.token_scale < 1 or self.ranks > MOST_RANKS:
            raise ValueError(
                f"token_scale={self.token_scale}, ranks={self.ranks}: allowed token_scale >= 1, ranks <= {MOST_RANKS}"
            )
        make_shard_map(self.runtime.shard_map).homes(self.ranks, 1, 1)  # a map that cannot serve so many ranks says so
        if self.runtime.write == "copies":
            raise ValueError("write='copies': traces know one expert of a page; only the live runtime keeps copies")
        times = 0 < self.horizon_s < math.inf and 0 <= self.drain < math.inf
        if self.ranks < 1 or self.workloads < 1 or not times:
            raise ValueError(
                f"ranks={self.ranks}, workloads={self.workloads}, horizon_s={self.horizon_s}, drain={self.drain}: "
                "allowed ranks >= 1, workloads >= 1, horizon_s > 0, drain >= 0, both finite"
            )

    def host_bytes(self, cap_bytes: int) -> int:
        """Host memory of a rank whose cap on the device is `cap_bytes`; 0: no host tier."""
        return int(self.host * cap_bytes) if self.host > 0 else self.runtime.host_bytes or 0
