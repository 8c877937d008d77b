"""Policies that try to score without serving: what an optimiser would find if the objective had a hole.

Each is an ordinary `Policy`: it sees telemetry and says a control, nothing more. It starts from `base`, the best
fixed setting of the very workload in hindsight, and adds its trick; so a hack that gains anything scores below `base`.
`docs/reward-hacks.md` says why none does, `tests/env/test_reward_hacks.py` and `benchmarks/reward_hacks.py` play them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pikv_runtime.contract import (
    EVICT_MAX,
    RATIO_MAX,
    Control,
    GlobalControl,
    GroupControl,
    Telemetry,
)
from pikv_runtime.registry import Registry

FIXED = (
    "capped_exact/lru",
    "static:demote=true,r_pressure=2/h2o",
    "static:demote=true,r_pressure=4/h2o",
    "static:demote=true,r_pressure=4,window=1,cached_share=0.3/h2o",
    "static:demote=true,r_pressure=4,evict=0.5,window=1,cached_share=0.3/h2o",
    "static:demote=true,r_pressure=4,evict=0.5,fan_out=0.5,cached_share=0.3/h2o",
    "static:demote=true,r_pressure=4,window=1,cached_share=0.0/h2o",
    "static:demote=true,r_pressure=4,evict=0.5,window=1,cached_share=0.0/h2o",
    "static:demote=true,r_pressure=4,evict=0.5,fan_out=0.25,window=1,cached_share=0.0/h2o",
    "static:demote=true,r_pressure=4,evict=0.5,fan_out=0.05,window=1,cached_share=0.0/h2o",
    "static:demote=true,r_pressure=4,evict=0.5,window=1,cached_share=0.0/streaming_llm",
    "static:ratio=1.9,demote=true,r_pressure=4,cached_share=0.3/h2o",
    "static:ratio=3.5,demote=true,r_pressure=4,evict=0.5,fan_out=0.25,cached_share=0.3/h2o",
    "static:ratio=3.5,demote=true,r_pressure=4,evict=0.5,fan_out=0.1,window=1,cached_share=0.3/h2o",
)
"""What hacks are measured against: doing nothing (the first), and settings that never change, from exact to what a
machine far over its capacity needs."""

Trick = Callable[[int, Telemetry, Control], None]
"""Changes the base control (third) in interval (first) under telemetry (second)."""


@dataclass(frozen=True)
class Hack:
    """One way to cheat."""

    name: str
    tries: str
    """What it hopes to gain."""
    answer: str
    """Why the environment does not pay for it."""
    trick: Callable[[], Trick]
    """A fresh trick for every episode: some remember what they were told."""


class HackPolicy:
    """A hack as a `Policy`, over a base control that it may change anew in every interval."""

    def __init__(self, hack: Hack, base: Control) -> None:
        self.name, self._base, self._trick, self._step = hack.name, base.copy(), hack.trick(), 0
        self.acted = 0
        """Intervals in which it asked for something else than its base."""

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        out = out if out is not None else Control.zeros(len(telemetry.groups))
        out.groups[:], out.globals[:] = self._base.groups, self._base.globals
        self._trick(self._step, telemetry, out)
        self._step += 1
        same = np.array_equal(out.groups, self._base.groups) and np.array_equal(out.globals, self._base.globals)
        self.acted += not same
        return out


HACKS: Registry[Hack] = Registry("reward hack")


def hack(name: str, tries: str, answer: str) -> Callable[[Callable[[], Trick]], Callable[[], Trick]]:
    """Decorator: register a maker of tricks as hack `name`."""

    def add(trick: Callable[[], Trick]) -> Callable[[], Trick]:
        HACKS.add(name, Hack(name, tries, answer, trick))
        return trick

    return add


def plain(trick: Trick) -> Callable[[], Trick]:
    """A trick without memory."""
    return lambda: trick


def ask(out: Control, **values: float) -> None:
    """Set globals by name; `ratio` and `evict` in all groups."""
    columns = {"ratio": GroupControl.COMPRESSION_RATIO, "evict": GroupControl.EVICT_FRACTION}
    for name, value in values.items():
        if name in columns:
            out.groups[:, columns[name]] = value
        else:
            out.globals[GlobalControl[name.upper()]] = value


def exact(out: Control) -> None:
    """The neutral control: nothing lossy, everything kept."""
    neutral = Control.neutral(len(out.groups))
    out.groups[:], out.globals[:] = neutral.groups, neutral.globals


def blur(out: Control) -> None:
    """As little work and memory as can be asked for."""
    ask(out, ratio=RATIO_MAX, evict=EVICT_MAX, fan_out=0.05, window=1)
