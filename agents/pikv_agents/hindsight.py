"""The best constant setting in hindsight: from the best of a grid, one step along every axis, then the steps that help
together, as long as that is better.

Headroom is measured against it, so it must be a strong opponent: it may choose everything that a policy may ask for,
and the block rule and the ranker besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pikv_agents.racing import race
from pikv_agents.rollout import Episode, Suite
from pikv_agents.static_grid import Table, best_single
from pikv_runtime.controllers import Static, make_policy

ORDERED: Mapping[str, tuple[float, ...]] = {
    "ratio": (1.0, 1.4, 2.0, 2.6, 3.4),
    "evict": (0.0, 0.02, 0.05, 0.1, 0.2),
    "fan_out": (0.1, 0.2, 0.35, 0.5, 0.7, 1.0),
    "window": (1.0, 2.0, 4.0, 8.0),
    "cached_share": (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0),
    "cached_ratio": (1.0, 2.0, 3.4),
    "r_pressure": (1.0, 2.0, 4.0),
}
"""Values of the numbers that a static setting has; a step goes to the next below or above."""
NAMED: Mapping[str, tuple[str, ...]] = {
    "ranker": ("lru", "lfu", "h2o", "streaming_llm"),
    "block_rule": ("", "two_queue", "s3fifo", "sieve", "arc", "tlru", "lrb"),
}
"""Orders that know nothing of the future; a step goes to any other."""
AXES = (*ORDERED, *NAMED)
HOPELESS = 1.1
"""A setting is stopped in an episode once it was charged so many times the least J known there."""
LEAST_GAIN = 5e-4
"""Difference in mean log J below which two settings are alike."""


@dataclass(frozen=True)
class Tuned:
    """What a search for a constant setting came to."""

    table: Table
    """J by spec and episode of every setting that was played; infinite where it was stopped, being `HOPELESS`."""
    known: tuple[float, ...]
    """J by episode that was reached otherwise."""

    @property
    def best(self) -> str:
        """Spec of least geometric-mean J over the episodes."""
        return best_single(self.table)

    def least(self) -> list[float]:
        """Least J by episode."""
        return np.min(list(self.table.values()), axis=0).tolist()

    def by_episode(self) -> list[str]:
        """The setting of least J by episode."""
        specs = list(self.table)
        return [specs[k] for k in np.argmin([self.table[spec] for spec in specs], axis=0)]

    def play(self, suite: Suite, specs: Sequence[str], episodes: Sequence[Episode]) -> None:
        """Add settings to the table."""
        new = [spec for spec in dict.fromkeys(specs) if spec not in self.table]
        limits = [HOPELESS * J for J in np.min([self.known, *self.table.values()], axis=0).tolist()]
        self.table.update(zip(new, race(suite, new, episodes, limits), strict=True))


def tune(
    suite: Suite,
    episodes: Sequence[Episode],
    starts: Sequence[str],
    axes: Sequence[str],
    rounds: int,
    known: Sequence[float] | None = None,
) -> Tuned:
    """Play `starts`, then search around the best of them.

    Args:
        suite: Workloads; keeps what it has played.
        episodes: Where; settings are compared by their mean log J.
        starts: Specs of static settings.
        axes: What the search may change, of `AXES`.
        rounds: Most rounds; a round that finds nothing better is the last.
        known: J by episode that was reached otherwise: what is far above it is not played to the end.
    """
    tuned = Tuned({}, tuple(known or [math.inf] * len(episodes)))
    tuned.play(suite, starts, episodes)
    for _ in range(rounds):
        here = tuned.best
        steps = {axis: [one.name for one in neighbours(static(here), axis)] for axis in axes}
        tuned.play(suite, [spec for specs in steps.values() for spec in specs], episodes)
        tuned.play(suite, _together(tuned.table, here, steps), episodes)
        if tuned.best == here:
            break
    return tuned


def changed(setting: Static, axis: str, value: Any) -> Static:
    """`setting` with another value on one axis; `r_pressure` says with it whether pressure may demote."""
    return replace(setting, **({"demote": value > 1} if axis == "r_pressure" else {}), **{axis: value})


def neighbours(setting: Static, axis: str) -> list[Static]:
    """The settings one step away along an axis of `AXES`."""
    now = getattr(setting, axis)
    if axis in NAMED:
        return [changed(setting, axis, name) for name in NAMED[axis] if name != now]
    below = [v for v in ORDERED[axis] if v < now][-1:]
    above = [v for v in ORDERED[axis] if v > now][:1]
    return [changed(setting, axis, value) for value in below + above]


def _together(table: Table, here: str, steps: Mapping[str, Sequence[str]]) -> list[str]:
    """Settings that take several of the steps that help: the best two, and all."""
    gains = {}
    for axis, specs in steps.items():
        for spec in specs:
            if not np.isfinite([*table[spec], *table[here]]).all():
                continue
            gain = float(np.mean(np.log(table[here]) - np.log(table[spec])))
            if gain > max(LEAST_GAIN, gains.get(axis, (0.0, ""))[0]):
                gains[axis] = (gain, spec)
    helping = sorted(gains, key=lambda axis: -gains[axis][0])
    found = []
    for count in {2, len(helping)} if len(helping) > 1 else ():
        setting = static(here)
        for axis in helping[:count]:
            setting = changed(setting, axis, getattr(static(gains[axis][1]), axis))
        found.append(setting.name)
    return found


def static(spec: str) -> Static:
    """The static setting of a spec; ValueError for any other controller."""
    setting = make_policy(spec)
    if not isinstance(setting, Static):
        raise ValueError(f"{spec!r}: only static settings can be searched around")
    return setting
