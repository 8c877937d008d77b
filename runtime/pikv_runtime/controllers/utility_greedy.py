"""Utility greedy: whichever of compressing and evicting costs least fidelity per byte, until enough is free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pikv_runtime.contract import EVICT_MAX, Control, GlobalFeature, GroupControl, GroupFeature, Telemetry
from pikv_runtime.controllers.base import Controller, allow_demotion, check_range

_RATIOS = (2.0, 3.4)  # int8, int4: what the ladder's rungs come to
_EVICTS = np.linspace(0.1, EVICT_MAX, 5)


@dataclass(frozen=True)
class UtilityGreedy(Controller):
    """The joint choice of EvicPress (arXiv:2512.14946), for control groups instead of contexts.

    EvicPress gives every context a utility of quality and delay under each way to store it, from profiles, and when
    memory is short takes the changes that lose least utility per byte freed. Here a change is one rung of the ladder
    or another tenth of a group's pages evicted. Its loss is the group's share of attention mass times the error that
    the rung adds, or times the mass of the pages that go: lowest first, the first share x of them holds x^`skew` of
    it. Changes are taken in order of loss per byte freed, none before the lesser ones of its group, until net pressure
    is at `target`.
    """

    target: float = 0.8
    """Net pressure (without cached blocks, which go first) that is aimed at."""
    int8_error: float = 0.005
    """Relative error that int8 adds: the profile of the codec."""
    int4_error: float = 0.08
    """Relative error that int4 adds."""
    skew: float = 2.5
    """How unevenly attention falls on a group's pages; 1: evenly."""
    queue_gain: float = 0.25
    """Weight of the waiting prompts (log1p of their share of the cap)."""

    kind: ClassVar[str] = "utility_greedy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("target", self.target, 0, 1)
        check_range("int8_error", self.int8_error, 0, 1)
        check_range("int4_error", self.int4_error, self.int8_error, 1)
        check_range("skew", self.skew, 1, 10)
        check_range("queue_gain", self.queue_gain, 0, 10)

    def write(self, telemetry: Telemetry, out: Control) -> None:
        """Ask for the cheapest changes."""
        told = telemetry.globals
        pressure = float(told[GlobalFeature.PRESSURE] - told[GlobalFeature.CACHED_SHARE])
        short = pressure + self.queue_gain * float(told[GlobalFeature.QUEUED_PROMPT]) - self.target
        if short <= 0:
            return
        losses, freed = self._changes(telemetry)
        chosen = cheapest(losses, freed, short)
        rungs = chosen[:, : len(_RATIOS)].sum(1)
        out.groups[:, GroupControl.COMPRESSION_RATIO] = np.array((1.0, *_RATIOS))[rungs]
        evicts = chosen[:, len(_RATIOS) :].sum(1)
        out.groups[:, GroupControl.EVICT_FRACTION] = np.concatenate([[0.0], _EVICTS])[evicts]
        # Requests that need a page before the next decision: what compression was worth it there, too.
        allow_demotion(out, float(out.groups[:, GroupControl.COMPRESSION_RATIO].max()))

    def _changes(self, telemetry: Telemetry) -> tuple[np.ndarray, np.ndarray]:
        """Loss and bytes (share of the cap) freed by each change of each group: (N, changes), rungs first."""
        groups = telemetry.groups.astype(np.float64)
        held = groups[:, GroupFeature.RESIDENT_SHARE, None]
        # Share of the attention-mass average: the density is that over the share of tokens.
        mass = groups[:, GroupFeature.TOKENS_SHARE, None] * 2.0 ** groups[:, GroupFeature.MASS_DENSITY, None]
        ratio = np.maximum(2.0 ** groups[:, GroupFeature.MEAN_RATIO, None], 1e-3)
        stored = np.minimum(1.0, ratio / np.array(_RATIOS))  # of the bytes now, what a rung leaves
        stored = np.concatenate([np.ones_like(ratio), np.minimum.accumulate(stored, 1)], 1)
        errors = np.array([0.0, self.int8_error, self.int4_error])
        shares = np.concatenate([[0.0], _EVICTS])
        freed = np.concatenate([-np.diff(stored, axis=1), np.tile(np.diff(shares), (len(groups), 1))], 1)
        loss = np.concatenate([np.diff(errors), np.diff(shares**self.skew)])
        return mass * loss, held * freed


def cheapest(losses: np.ndarray, freed: np.ndarray, short: float, rungs: int = len(_RATIOS)) -> np.ndarray:
    """Which changes (N, changes) to take, 0 or 1: by loss per byte until `short` is freed. Rungs are taken in order,
    and so are the steps of eviction: a dear change makes those behind it as dear."""
    price = np.where(freed > 1e-12, losses / np.maximum(freed, 1e-12), np.inf)
    for part in (price[:, :rungs], price[:, rungs:]):
        # A rung that frees nothing (the pages are there already) does not hold up the next one.
        part[:] = np.where(np.isinf(part), np.inf, np.maximum.accumulate(np.where(np.isinf(part), 0.0, part), axis=1))
    order = np.argsort(price, axis=None, kind="stable")
    order = order[np.isfinite(price.ravel()[order])]
    before = np.cumsum(freed.ravel()[order]) - freed.ravel()[order]
    taken = np.zeros(freed.size, np.int64)
    taken[order[before < short]] = 1
    chosen = taken.reshape(freed.shape)
    done = np.flip(np.maximum.accumulate(np.flip(chosen[:, :rungs], 1), axis=1), 1)
    return np.concatenate([done, chosen[:, rungs:]], 1)
