"""What is kept of an episode for its picture: the state of every page, and a few numbers, after every interval.

Environments keep a film only where a render mode is set; everything is read off the ledger's arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.contract import GlobalControl, GroupControl
from pikv_runtime.ledger import Ledger, Status, Tally
from pikv_runtime.ledger.state import ON_DEVICE

States = NDArray[np.uint8]

FREE, NATIVE, TOP, INT8, INT4, CACHED, EVICTED = range(7)
LABELS = ("free", "native", "bf16", "int8", "int4", "cached", "evicted")
"""States of a page. The first four resident ones are live, by codec; cached pages wait for a later prompt; evicted
ones are those that a running request has lost."""
RESIDENT = (NATIVE, TOP, INT8, INT4, CACHED)


@dataclass(frozen=True)
class Shot:
    """One moment. `pages` (blocks in use, L) are states by block slot and layer; counts and shares are of all pages."""

    time_s: float
    pages: States
    counts: dict[str, int]
    """Pages by state, of one layer each."""
    shares: dict[str, float]
    """Bytes by resident state over the cap of all ranks."""
    resident_share: float
    """All bytes over the cap, centroids of evicted pages included."""
    waiting: int
    running: int
    unfinished: int
    numbers: dict[str, float]
    """Counters since the start, and the control in force."""


class Film:
    """The shots of one episode, in order."""

    def __init__(self, title: str = "") -> None:
        self.title = title
        self.end_s = 1.0
        self.shots: list[Shot] = []

    def restart(self, title: str, end_s: float) -> None:
        """Begin a new episode: its title, and when its arrivals end (seconds)."""
        self.title, self.end_s = title, end_s
        self.shots = []

    def add(self, s: Ledger, lane: int = 0, J: float = 0.0) -> None:
        """Keep lane `lane` as it is now; `J` is the objective so far."""
        self.shots.append(_shoot(s, lane, J))


def page_states(s: Ledger, lane: int = 0) -> States:
    """The state of every page of a lane, (B, L)."""
    codec = s.block_codec[lane]
    states = (codec + 1).astype(np.uint8)
    states[(s.block_cached[lane] == 1)[:, None] & (codec >= 0)] = CACHED
    states[s.block_host[lane] != ON_DEVICE] = FREE
    for r in np.flatnonzero(s.slot_request[lane] >= 0):
        count = int(s.slot_pages[lane, r])
        blocks = np.asarray(s.page_block[lane, r, :count])
        gone = (s.page_live[lane, r, :, :count].T == 0) & (codec[blocks] < 0)
        rows, layers = np.nonzero(gone & (blocks >= 0)[:, None])
        states[blocks[rows], layers] = EVICTED
    return states


def _shoot(s: Ledger, lane: int, J: float) -> Shot:
    states = page_states(s, lane)
    in_use = np.flatnonzero((states != FREE).any(axis=1))
    counts = np.bincount(states.ravel(), minlength=len(LABELS))
    cap = float(s.cap_bytes[lane]) * s.ranks
    bytes_ = {LABELS[k]: counts[k] * float(s.codec_bytes[k - 1]) / cap for k in (NATIVE, TOP, INT8, INT4)}
    status = s.req_status[lane, : s.num_requests[lane]]
    return Shot(
        time_s=float(s.clock_s[lane]),
        pages=states[: in_use[-1] + 1 if len(in_use) else 0].copy(),
        counts={label: int(count) for label, count in zip(LABELS, counts, strict=True)},
        shares={**bytes_, "cached": float(s.cached_bytes[lane].sum()) / cap},
        resident_share=float(s.bytes_rank[lane].sum()) / cap,
        waiting=int(np.count_nonzero(status == Status.WAITING)),
        running=int(np.count_nonzero(status == Status.RUNNING)),
        unfinished=int(s.unfinished[lane]),
        numbers={"J": J, **_numbers(s, lane)},
    )


def _numbers(s: Ledger, lane: int) -> dict[str, float]:
    tally, groups, globals_ = s.tally[lane], s.control_groups[lane], s.control_globals[lane]
    return {
        "hit_share": float(tally[Tally.HIT_TOKENS] / max(1.0, float(tally[Tally.PROMPT_TOKENS]))),
        "evicted_pages": float(tally[Tally.EVICTED_PAGES]),
        "evicted_blocks": float(tally[Tally.EVICTED_BLOCKS]),
        "preemptions": float(tally[Tally.PREEMPTIONS]),
        "ratio": float(groups[:, GroupControl.COMPRESSION_RATIO].mean()),
        "evict": float(groups[:, GroupControl.EVICT_FRACTION].mean()),
        "fan_out": float(globals_[GlobalControl.FAN_OUT]),
        "cached_share": float(globals_[GlobalControl.CACHED_SHARE]),
    }
