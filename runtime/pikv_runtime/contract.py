"""The contract between runtime and policy: what is told (`Telemetry`), what may be asked (`Control`).

Both are plain float32 arrays with named, ordered, unit-carrying columns, all relative (shares, ratios, logs), so
that one policy serves any number of control groups, profile and geometry. A group is an (expert shard × layer
group). Numpy only. `CONTRACT_HASH` changes with any name, order, unit or range; a bundle made for another hash
is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

CONTRACT_VERSION = "1.0"
RATIO_MAX = 4.0  # asked mean compression ratio; the ladder's own end (about 3.4 for int4) clips it further
EVICT_MAX = 0.5  # largest share of a group's evictable live bytes freed in one interval
CLASSES = 2  # service classes a workload may use; fidelity loss is told per class


@dataclass(frozen=True)
class Column:
    """One named column: unit and the range outside which a value is not credible."""

    name: str
    unit: str
    low: float
    high: float
    doc: str


def _columns(*rows: tuple[str, str, float, float, str]) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


GROUP_FEATURES = _columns(
    ("resident_share", "share of cap", 0, 1, "live resident bytes of the group"),
    ("native_share", "share of group bytes", 0, 1, "bytes not yet sealed"),
    ("top_share", "share of group bytes", 0, 1, "bytes at the top rung"),
    ("tokens_share", "share of live tokens", 0, 1, "tokens held by the group"),
    ("mass_density", "log2 ratio", -12, 12, "share of attention-mass average over share of tokens"),
    ("routing_share", "share of tokens", 0, 1, "moving share of tokens that the gate sends to this expert"),
    ("recency", "log1p intervals", 0, 16, "mean intervals since the group's pages were last read"),
    ("miss_rate", "share of wishes", 0, 1, "wished pages that were ghosts, this interval"),
    ("ghost_share", "share of pages", 0, 1, "ghosts among the group's pages"),
    ("codec_error", "relative error", 0, 2, "mean codec error of resident pages"),
    ("mean_ratio", "log2 ratio", -1, 4, "mean compression ratio of resident live pages"),
    ("layer_position", "share", 0, 1, "layer group from first (0) to last (1)"),
)


class GroupFeature(IntEnum):
    """Column numbers of `Telemetry.groups`."""

    RESIDENT_SHARE = 0
    NATIVE_SHARE = 1
    TOP_SHARE = 2
    TOKENS_SHARE = 3
    MASS_DENSITY = 4
    ROUTING_SHARE = 5
    RECENCY = 6
    MISS_RATE = 7
    GHOST_SHARE = 8
    CODEC_ERROR = 9
    MEAN_RATIO = 10
    LAYER_POSITION = 11


GLOBAL_FEATURES = _columns(
    ("pressure", "share of cap", 0, 1.001, "resident bytes on the fullest rank"),
    ("cached_share", "share of cap", 0, 1, "bytes of cached blocks, evictable at the price of recomputation"),
    ("live_share", "share of cap", 0, 1, "evictable live bytes"),
    ("pinned_share", "share of cap", 0, 1, "always-on, open and unsealed bytes"),
    ("running_share", "share of slots", 0, 1, "requests running"),
    ("prefilling_share", "share of slots", 0, 1, "requests in prefill"),
    ("queued_requests", "log1p count", 0, 16, "requests waiting"),
    ("queued_prompt", "log1p share of cap", 0, 16, "native bytes of the waiting prompts"),
    ("queued_hits", "share of tokens", 0, 1, "waiting prompt tokens that a lookup would hit now"),
    ("queue_age", "log1p SLOs", 0, 16, "age of the oldest waiting request over its TTFT SLO"),
    ("arrival_load", "share of compute", 0, 16, "moving prefill work offered per second of model time"),
    ("arrival_trend", "log2 ratio", -8, 8, "fast over slow moving arrival load"),
    ("prefix_hit_rate", "share of tokens", 0, 1, "moving share of prompt tokens found in the cache"),
    ("reuse_gap", "log1p intervals", 0, 16, "moving time between uses of a reused block"),
    ("whole_block_share", "share of blocks", 0, 1, "live blocks whole in all layers and exact"),
    ("loss_class0", "loss per token", 0, 2, "cumulative fidelity loss, class 0"),
    ("loss_class1", "loss per token", 0, 2, "cumulative fidelity loss, class 1"),
    ("preemptions", "log1p count", 0, 8, "preemptions in the interval"),
    ("class1_share", "share of running", 0, 1, "running requests of class 1"),
    ("previous_ratio", "log2 ratio", 0, 2, "mean asked compression ratio of the control in force"),
    ("previous_evict", "share", 0, 1, "mean asked evict fraction of the control in force"),
    ("previous_fan_out", "share", 0, 1, "fan-out in force"),
    ("previous_window", "share of pages", 0, 1, "window in force over the largest window"),
    ("previous_cached_share", "share of cap", 0, 1, "cached share in force"),
    ("previous_cached_ratio", "log2 ratio", 0, 2, "cached ratio in force"),
    ("previous_r_pressure", "log2 ratio", 0, 2, "pressure ratio in force, 0 where pressure may not demote"),
    ("conflict_rate", "share of wishes", 0, 1, "wishes for pages that were evicted within a minute before them"),
    ("low_hit_share", "share of tokens", 0, 1, "tokens routed to groups that lack most of the pages wished of them"),
    ("vetoes", "share", 0, 1, "share of asked changes that were not legal, last interval"),
    ("interval", "log2 seconds", -12, 12, "interval length"),
    ("price_prefill", "log2 ratio", -24, 24, "one prefill token over one decode step"),
    ("price_attention", "log2 ratio", -24, 24, "reading one top-rung page over one decode step"),
    ("price_codec", "log2 ratio", -24, 24, "encoding one page over one decode step"),
    ("price_link", "log2 ratio", -24, 24, "moving one top-rung page over one decode step; -24 with one rank"),
    ("lambda1", "log2", -12, 12, "price of memory"),
    ("lambda2", "log2", -12, 12, "price of lost fidelity"),
    ("host_share", "share of host cap", 0, 1, "host bytes of evicted blocks; 0 without a host tier"),
    ("host_hit_rate", "share of tokens", 0, 1, "moving share of prompt tokens found in the host"),
    ("price_host", "log2 ratio", -24, 24, "moving one top-rung page to the host over one decode step; -24 without one"),
)


class GlobalFeature(IntEnum):
    """Column numbers of `Telemetry.globals`."""

    PRESSURE = 0
    CACHED_SHARE = 1
    LIVE_SHARE = 2
    PINNED_SHARE = 3
    RUNNING_SHARE = 4
    PREFILLING_SHARE = 5
    QUEUED_REQUESTS = 6
    QUEUED_PROMPT = 7
    QUEUED_HITS = 8
    QUEUE_AGE = 9
    ARRIVAL_LOAD = 10
    ARRIVAL_TREND = 11
    PREFIX_HIT_RATE = 12
    REUSE_GAP = 13
    WHOLE_BLOCK_SHARE = 14
    LOSS_CLASS0 = 15
    LOSS_CLASS1 = 16
    PREEMPTIONS = 17
    CLASS1_SHARE = 18
    PREVIOUS_RATIO = 19
    PREVIOUS_EVICT = 20
    PREVIOUS_FAN_OUT = 21
    PREVIOUS_WINDOW = 22
    PREVIOUS_CACHED_SHARE = 23
    PREVIOUS_CACHED_RATIO = 24
    PREVIOUS_R_PRESSURE = 25
    CONFLICT_RATE = 26
    LOW_HIT_SHARE = 27
    VETOES = 28
    INTERVAL = 29
    PRICE_PREFILL = 30
    PRICE_ATTENTION = 31
    PRICE_CODEC = 32
    PRICE_LINK = 33
    LAMBDA1 = 34
    LAMBDA2 = 35
    HOST_SHARE = 36
    HOST_HIT_RATE = 37
    PRICE_HOST = 38


GROUP_CONTROLS = _columns(
    ("routing_bias", "score", -1, 1, "added to the normalised read-set score of the group's pages"),
    ("compression_ratio", "ratio", 1, RATIO_MAX, "asked mean ratio over the group's resident live pages"),
    ("evict_fraction", "share", 0, EVICT_MAX, "share of the group's evictable live bytes freed now"),
)


class GroupControl(IntEnum):
    """Column numbers of `Control.groups`."""

    ROUTING_BIAS = 0
    COMPRESSION_RATIO = 1
    EVICT_FRACTION = 2


GLOBAL_CONTROLS = _columns(
    ("fan_out", "share", 0.05, 1, "share of a request's other resident pages that a query reads (sparse reading)"),
    ("window", "pages", 1, 16, "recent pages always read, never evicted, always native"),
    ("cached_share", "share of cap", 0, 1, "most bytes that cached blocks may hold"),
    ("cached_ratio", "ratio", 1, RATIO_MAX, "asked mean ratio of cached blocks"),
    ("r_pressure", "ratio", 1, RATIO_MAX, "over the cap, live pages may be demoted so far; 1: not at all"),
    ("page_recency", "weight", -1, 1, "page utility: recently read"),
    ("page_frequency", "weight", -1, 1, "page utility: often in the read set"),
    ("page_mass", "weight", -1, 1, "page utility: attention-mass average"),
    ("page_mass_sum", "weight", -1, 1, "page utility: accumulated attention mass"),
    ("page_position", "weight", -1, 1, "page utility: late in the request"),
    ("page_class", "weight", -1, 1, "page utility: fidelity weight of the request's class"),
    ("block_recency", "weight", -1, 1, "block utility: recently used"),
    ("block_frequency", "weight", -1, 1, "block utility: often used"),
    ("block_depth", "weight", -1, 1, "block utility: shallow in its chain"),
    ("block_children", "weight", -1, 1, "block utility: cached continuations"),
    ("block_length", "weight", -1, 1, "block utility: length of the request that made it"),
    ("block_class", "weight", -1, 1, "block utility: weight of the class that made it"),
)


class GlobalControl(IntEnum):
    """Column numbers of `Control.globals`."""

    FAN_OUT = 0
    WINDOW = 1
    CACHED_SHARE = 2
    CACHED_RATIO = 3
    R_PRESSURE = 4
    PAGE_RECENCY = 5
    PAGE_FREQUENCY = 6
    PAGE_MASS = 7
    PAGE_MASS_SUM = 8
    PAGE_POSITION = 9
    PAGE_CLASS = 10
    BLOCK_RECENCY = 11
    BLOCK_FREQUENCY = 12
    BLOCK_DEPTH = 13
    BLOCK_CHILDREN = 14
    BLOCK_LENGTH = 15
    BLOCK_CLASS = 16


PAGE_WEIGHTS = slice(GlobalControl.PAGE_RECENCY, GlobalControl.BLOCK_RECENCY)
BLOCK_WEIGHTS = slice(GlobalControl.BLOCK_RECENCY, GlobalControl.BLOCK_CLASS + 1)

_PARTS = (
    (GROUP_FEATURES, GroupFeature),
    (GLOBAL_FEATURES, GlobalFeature),
    (GROUP_CONTROLS, GroupControl),
    (GLOBAL_CONTROLS, GlobalControl),
)
for _specs, _enum in _PARTS:
    assert [c.name.upper() for c in _specs] == [e.name for e in _enum], f"{_enum.__name__} differs from its columns"

CONTRACT_HASH = hashlib.sha256(
    json.dumps([CONTRACT_VERSION, [[(c.name, c.unit, c.low, c.high) for c in p] for p, _ in _PARTS]]).encode()
).hexdigest()[:16]


@dataclass
class Telemetry:
    """What the runtime knows after an interval: `groups` (N, F_group) and `globals` (F_global,), float32."""

    groups: Array
    globals: Array

    @classmethod
    def zeros(cls, num_groups: int) -> Telemetry:
        """Preallocated telemetry for `num_groups` control groups."""
        return cls(np.zeros((num_groups, len(GROUP_FEATURES)), np.float32), np.zeros(len(GLOBAL_FEATURES), np.float32))


@dataclass
class Control:
    """What a policy asks for: `groups` (N, 3) and `globals` (17,), float32, columns as declared above."""

    groups: Array
    globals: Array

    @classmethod
    def zeros(cls, num_groups: int) -> Control:
        """Preallocated control; all zeros is not a legal control, `neutral` is."""
        return cls(np.zeros((num_groups, len(GROUP_CONTROLS)), np.float32), np.zeros(len(GLOBAL_CONTROLS), np.float32))

    @classmethod
    def neutral(cls, num_groups: int) -> Control:
        """Do nothing lossy: ratio 1, no eviction, read everything, cached blocks in LRU order."""
        control = cls.zeros(num_groups)
        control.groups[:, GroupControl.COMPRESSION_RATIO] = 1.0
        control.globals[GlobalControl.FAN_OUT] = 1.0
        control.globals[GlobalControl.WINDOW] = 2.0
        control.globals[GlobalControl.CACHED_SHARE] = 1.0
        control.globals[GlobalControl.CACHED_RATIO] = 1.0
        control.globals[GlobalControl.R_PRESSURE] = 1.0
        control.globals[GlobalControl.PAGE_RECENCY] = 1.0
        control.globals[GlobalControl.BLOCK_RECENCY] = 1.0
        return control

    def copy(self) -> Control:
        """A copy that shares nothing."""
        return Control(self.groups.copy(), self.globals.copy())


_GROUP_LOW = np.array([c.low for c in GROUP_CONTROLS], np.float32)
_GROUP_HIGH = np.array([c.high for c in GROUP_CONTROLS], np.float32)
_GLOBAL_LOW = np.array([c.low for c in GLOBAL_CONTROLS], np.float32)
_GLOBAL_HIGH = np.array([c.high for c in GLOBAL_CONTROLS], np.float32)


def clip_control(control: Control) -> int:
    """Clip `control` in place to the declared ranges; NaN becomes the neutral value. Returns values changed."""
    neutral = Control.neutral(len(control.groups))
    changed = 0
    for values, safe, low, high in (
        (control.groups, neutral.groups, _GROUP_LOW, _GROUP_HIGH),
        (control.globals, neutral.globals, _GLOBAL_LOW, _GLOBAL_HIGH),
    ):
        legal = np.clip(np.where(np.isnan(values), safe, values), low, high)
        changed += int(np.sum(legal != values))
        values[:] = legal
    return changed


def check_shapes(telemetry: Telemetry, control: Control) -> None:
    """Raise ValueError naming the first array whose shape is not the contract's."""
    n = len(telemetry.groups)
    for name, array, shape in (
        ("telemetry.groups", telemetry.groups, (n, len(GROUP_FEATURES))),
        ("telemetry.globals", telemetry.globals, (len(GLOBAL_FEATURES),)),
        ("control.groups", control.groups, (n, len(GROUP_CONTROLS))),
        ("control.globals", control.globals, (len(GLOBAL_CONTROLS),)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, the contract says {shape}")
