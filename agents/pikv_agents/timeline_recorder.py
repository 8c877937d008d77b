"""What an episode looked like, interval by interval: the timeline of `report/schema.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from pikv_env.batch import TraceBatch
from pikv_runtime.contract import GlobalControl, GlobalFeature, GroupControl
from pikv_runtime.ledger.state import CODECS, ON_DEVICE, Tally

_CONTROLS = ("mean_ratio", "evict_fraction", "fan_out", "cached_share", "r_pressure")
_STATES = (*CODECS, "cached")


class TimelineRecorder:
    """Collects one lane's series; `add` after every step."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}

    def add(self, batch: TraceBatch, i: int) -> None:
        """Append the state of lane `i` as of now."""
        s = batch.state
        row = {
            "time_s": float(s.clock_s[i]),
            "evicted": float(s.tally[i, Tally.EVICTED_PAGES]),
            "pressure": float(batch.globals[i, GlobalFeature.PRESSURE]),
            "queue": float(np.expm1(batch.globals[i, GlobalFeature.QUEUED_REQUESTS])),
        }
        for key, value in (row | _pages(batch, i) | _controls(batch, i)).items():
            self.rows.setdefault(key, []).append(value)

    def timeline(self, policy: str) -> dict[str, Any]:
        """One run of `Timeline`."""
        rows = self.rows
        return {
            "policy": policy,
            "pages": {state: rows[f"pages/{state}"] for state in _STATES},
            "bytes": {state: rows[f"bytes/{state}"] for state in _STATES},
            "controls": {name: rows[f"controls/{name}"] for name in _CONTROLS},
            **{key: rows[key] for key in ("time_s", "evicted", "pressure", "queue")},
        }


def _pages(batch: TraceBatch, i: int) -> dict[str, float]:
    """Pages and their share of the cap, by codec where live, together where cached."""
    s = batch.state
    cap = float(s.cap_bytes[i]) * s.ranks
    codec = np.where(s.block_host[i][:, None] == ON_DEVICE, s.block_codec[i], -1)
    cached = (s.block_cached[i] == 1)[:, None] & (codec >= 0)
    live = (codec >= 0) & ~cached
    row: dict[str, float] = {}
    for number, name in enumerate(CODECS):
        count = float(np.count_nonzero(live & (codec == number)))
        row[f"pages/{name}"] = count
        row[f"bytes/{name}"] = count * float(s.codec_bytes[number]) / cap
    row["pages/cached"] = float(np.count_nonzero(cached))
    row["bytes/cached"] = float(s.cached_bytes[i].sum()) / cap
    return row


def _controls(batch: TraceBatch, i: int) -> dict[str, float]:
    groups, globals_ = batch.state.control_groups[i], batch.state.control_globals[i]
    return {
        "controls/mean_ratio": float(groups[:, GroupControl.COMPRESSION_RATIO].mean()),
        "controls/evict_fraction": float(groups[:, GroupControl.EVICT_FRACTION].mean()),
        "controls/fan_out": float(globals_[GlobalControl.FAN_OUT]),
        "controls/cached_share": float(globals_[GlobalControl.CACHED_SHARE]),
        "controls/r_pressure": float(globals_[GlobalControl.R_PRESSURE]),
    }
