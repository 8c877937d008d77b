"""The settings that the study compares: one lever at a time, so that each effect has one cause."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import EVICT_MAX, Control, GlobalControl, GroupControl, GroupFeature, Telemetry
from pikv_runtime.controllers import make_policy
from pikv_runtime.rankers import apply_ranker
from pikv_runtime.routers import Scores

BASE = RuntimeConfig(
    read="sparse", router="centroid", codec="bf16", audit_share=1.0, observe_tokens=16, interval_s=0.5, slots=20
)
RANKERS = ("lru", "lfu", "h2o", "streaming_llm")
EVICTING_FAN_OUT = 0.25


@dataclass
class KeepShare:
    """Evicts, group by group, until a share `keep` of what a request has had is resident; and holds it there."""

    keep: float
    ranker: str
    fan_out: float
    patience: int = 0
    """Decisions at which it does not evict yet, for its ranker to see attention first."""
    decisions: int = 0

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """Ask each group for what it still holds beyond its share, known from its ghosts."""
        control = Control.neutral(len(telemetry.groups)) if out is None else out
        control.groups[:] = 0.0
        control.globals[:] = Control.neutral(1).globals
        apply_ranker(self.ranker, control)
        resident = np.maximum(1.0 - telemetry.groups[:, GroupFeature.GHOST_SHARE], 1e-6)
        control.groups[:, GroupControl.COMPRESSION_RATIO] = 1.0
        if self.decisions >= self.patience:
            control.groups[:, GroupControl.EVICT_FRACTION] = np.clip(1.0 - self.keep / resident, 0.0, EVICT_MAX)
        self.decisions += 1
        control.globals[GlobalControl.FAN_OUT] = self.fan_out
        return control


@dataclass(frozen=True)
class Setting:
    """One row of the study."""

    name: str
    lever: str
    value: float
    config: RuntimeConfig
    policy: Any
    scores: Scores | None = None
    """Takes the place of the router's scores: for controls that are no routers of the runtime."""


def settings() -> list[Setting]:
    """The exact cache first, then compression, sparse reading by two routers, and eviction by four rankers."""
    exact = replace(BASE, read="exact", router="all", codec="native")
    rows = [
        Setting("exact", "none", 1.0, exact, make_policy("static")),
        Setting("bf16", "none", 1.0, BASE, make_policy("static")),
    ]
    for ratio in (2.0, 4.0):
        rows.append(Setting(f"ratio {ratio:g}", "ratio", ratio, BASE, make_policy(f"static:ratio={ratio}")))
    for router in ("centroid", "gate"):
        for fan_out in (0.5, 0.25, 0.1, 0.05):
            config, policy = replace(BASE, router=router), make_policy(f"static:fan_out={fan_out}")
            rows.append(Setting(f"{router} {fan_out:g}", f"fan_out/{router}", fan_out, config, policy))
    for ranker in RANKERS:
        for keep in (0.5, 0.25):
            keeper = KeepShare(keep, ranker, EVICTING_FAN_OUT)
            rows.append(Setting(f"{ranker} keeps {keep:g}", f"evict/{ranker}", keep, BASE, keeper))
    return rows


def random_scores(query: Tensor, centroids: Tensor, tags: Tensor, gate: Tensor) -> Tensor:
    """Random pages, drawn anew for every query and layer: what choosing without knowing anything reads."""
    return torch.rand(tags.shape, device=query.device)


def recent_scores(query: Tensor, centroids: Tensor, tags: Tensor, gate: Tensor) -> Tensor:
    """The latest pages: a longer window and nothing else."""
    return torch.arange(tags.shape[1], device=query.device, dtype=torch.float32).expand(tags.shape)


def controls() -> list[Setting]:
    """The exact cache, and sparse reading that looks neither at gates nor at queries."""
    rows = settings()[:1]
    for name, scores in (("random", random_scores), ("recent", recent_scores)):
        for fan_out in (0.5, 0.25, 0.1):
            config, policy = replace(BASE, router="gate"), make_policy(f"static:fan_out={fan_out}")
            rows.append(Setting(f"{name} {fan_out:g}", f"fan_out/{name}", fan_out, config, policy, scores))
    return rows


def informed() -> list[Setting]:
    """Eviction that waits four seconds, while one of four decode steps is observed: what rankers are worth that have
    seen attention. The exact cache first, then the same reading without eviction."""
    seen = replace(BASE, observe_tokens=4)
    spare = make_policy(f"static:fan_out={EVICTING_FAN_OUT}")
    rows = [settings()[0], Setting("none, informed", "informed/none", 1.0, seen, spare)]
    for ranker in RANKERS:
        keeper = KeepShare(0.5, ranker, EVICTING_FAN_OUT, patience=8)
        rows.append(Setting(f"{ranker} keeps 0.5, informed", f"informed/{ranker}", 0.5, seen, keeper))
    return rows


@dataclass(frozen=True)
class Sparing:
    """Another policy, reading a share of the pages: where everything is read, everything evicted is asked for."""

    policy: Any
    fan_out: float

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """The policy's control with this fan-out."""
        control: Control = self.policy.decide(telemetry, out)
        control.globals[GlobalControl.FAN_OUT] = self.fan_out
        return control


def under_pressure(ranker: str) -> Sparing:
    """Evicts live pages in proportion to pressure, never demotes, reads a quarter."""
    spec = f"pressure_proportional:start=0.3,ratio=1,evict=0.3/{ranker}"
    return Sparing(make_policy(spec), EVICTING_FAN_OUT)
