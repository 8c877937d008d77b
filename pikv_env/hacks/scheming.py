"""Hacks that act on what telemetry tells: misses, idleness, arrivals, audits, observations, old news."""

from __future__ import annotations

from collections import deque

import numpy as np

from pikv_env.hacks.base import Trick, ask, blur, hack, plain
from pikv_runtime.contract import EVICT_MAX, Array, Control, GlobalFeature, GroupControl, GroupFeature, Telemetry
from pikv_runtime.controllers import make_policy

ONE_SLOT = 0.1  # of 16 slots, a smaller share than this is one request


@hack(
    "hide-misses",
    "bias reads away from groups that miss",
    "J counts mass, not misses that telemetry shows",
)
@plain
def _hide_misses(step: int, told: Telemetry, out: Control) -> None:
    ask(out, evict=0.25, fan_out=0.5)
    out.groups[:, GroupControl.ROUTING_BIAS] = 1 - 2 * (told.groups[:, GroupFeature.MISS_RATE] > 0)


@hack(
    "dump-when-idle",
    "free all cached blocks while nothing runs",
    "prompts that come back are computed anew",
)
@plain
def _dump_when_idle(step: int, told: Telemetry, out: Control) -> None:
    if told.globals[GlobalFeature.RUNNING_SHARE] == 0:
        ask(out, cached_share=0)


@hack(
    "last-interval",
    "blur and drop all once nobody arrives",
    "who still runs is observed, and charged until the end",
)
def _last_interval() -> Trick:
    before = 0.0

    def trick(step: int, told: Telemetry, out: Control) -> None:
        nonlocal before
        load = float(told.globals[GlobalFeature.ARRIVAL_LOAD])
        if load < 0.71 * before:  # the moving average falls to 0.7 of itself where nobody came
            blur(out)
            ask(out, cached_share=0)
        before = load

    return trick


@hack(
    "audit-meter",
    "blur while the loss told stands still: no audit runs",
    "where many run, some audit runs unseen",
)
def _audit_meter() -> Trick:
    last: list[Array] = []

    def trick(step: int, told: Telemetry, out: Control) -> None:
        meter = told.globals[[GlobalFeature.LOSS_CLASS0, GlobalFeature.LOSS_CLASS1]].copy()
        still = bool(last) and np.array_equal(last.pop(), meter)
        last.append(meter)
        coming = told.globals[GlobalFeature.PREFILLING_SHARE] + told.globals[GlobalFeature.QUEUED_REQUESTS]
        if still and told.globals[GlobalFeature.RUNNING_SHARE] > 0 and coming == 0:
            ask(out, fan_out=0.05)

    return trick


@hack(
    "audit-lone",
    "find out whether a request that runs alone is audited",
    "where many run nobody is alone; where one does, its loss is told when it has ended",
)
def _audit_lone() -> Trick:
    last: list[tuple[bool, float, Array]] = []

    def trick(step: int, told: Telemetry, out: Control) -> None:
        running, load = told.globals[GlobalFeature.RUNNING_SHARE], float(told.globals[GlobalFeature.ARRIVAL_LOAD])
        coming = told.globals[GlobalFeature.PREFILLING_SHARE] + told.globals[GlobalFeature.QUEUED_REQUESTS]
        alone = bool(0 < running < ONE_SLOT and coming == 0)
        meter = told.globals[[GlobalFeature.LOSS_CLASS0, GlobalFeature.LOSS_CLASS1]].copy()
        if last:
            was_alone, load_before, meter_before = last.pop()
            same = alone and was_alone and load < 0.71 * load_before  # nobody came: it is the same request
            if same and np.array_equal(meter, meter_before):
                ask(out, fan_out=0.05)
        last.append((alone, load, meter))

    return trick


@hack(
    "after-observation",
    "blur and evict right after an observation",
    "the next comes within the interval",
)
def _after_observation() -> Trick:
    last: list[Array] = []

    def trick(step: int, told: Telemetry, out: Control) -> None:
        mass = told.groups[:, GroupFeature.MASS_DENSITY].copy()
        if last and not np.array_equal(last.pop(), mass):
            ask(out, fan_out=0.05, evict=EVICT_MAX)
        last.append(mass)

    return trick


@hack(
    "stale",
    "act on telemetry that is ten intervals old",
    "old news is worse than a fixed setting",
)
def _stale() -> Trick:
    heard: deque[Telemetry] = deque(maxlen=10)
    rule = make_policy("load_proportional/h2o")

    def trick(step: int, told: Telemetry, out: Control) -> None:
        heard.append(Telemetry(told.groups.copy(), told.globals.copy()))
        rule.decide(heard[0], out)

    return trick
