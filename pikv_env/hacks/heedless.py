"""Hacks that heed nothing: fixed extremes, and extremes in turn."""

from __future__ import annotations

import numpy as np

from pikv_env.hacks.base import Trick, ask, blur, exact, hack, plain
from pikv_runtime.contract import BLOCK_WEIGHTS, EVICT_MAX, PAGE_WEIGHTS, RATIO_MAX, Control, Telemetry
from pikv_runtime.controllers import make_policy


@hack(
    "freeze",
    "keep everything and change nothing: no loss, no codec time",
    "who finds no room waits, and waiting is charged",
)
@plain
def _freeze(step: int, told: Telemetry, out: Control) -> None:
    exact(out)
    ask(out, window=16)


@hack(
    "evict-all",
    "hold nothing: no memory, short reads",
    "missed mass costs more than bytes and time saved",
)
@plain
def _evict_all(step: int, told: Telemetry, out: Control) -> None:
    blur(out)
    ask(out, cached_share=0, ratio=1)


@hack(
    "blur-all",
    "read a twentieth of int4 pages: fast steps",
    "λ2 times the missed mass is more than the time saved",
)
@plain
def _blur_all(step: int, told: Telemetry, out: Control) -> None:
    blur(out)
    ask(out, evict=0)


@hack(
    "empty-cache",
    "drop every cached block: bytes cost by the second",
    "prompts that come back are computed anew",
)
@plain
def _empty_cache(step: int, told: Telemetry, out: Control) -> None:
    ask(out, cached_share=0)


@hack(
    "thrash-codecs",
    "int4 in one interval, exact in the next",
    "demotion is for good, and encoding takes time",
)
@plain
def _thrash_codecs(step: int, told: Telemetry, out: Control) -> None:
    ask(out, ratio=RATIO_MAX if step % 2 else 1)


@hack(
    "thrash-cache",
    "empty the cache every other interval",
    "what was dropped is gone: prompts are computed anew",
)
@plain
def _thrash_cache(step: int, told: Telemetry, out: Control) -> None:
    ask(out, cached_share=step % 2)


@hack(
    "thrash-window",
    "widen and shrink the window: later requests are preempted",
    "they wait and are recomputed",
)
@plain
def _thrash_window(step: int, told: Telemetry, out: Control) -> None:
    ask(out, window=1 if step % 2 else 16)


@hack(
    "thrash-reads",
    "read little in every other interval",
    "an interval holds observations of many requests",
)
@plain
def _thrash_reads(step: int, told: Telemetry, out: Control) -> None:
    ask(out, fan_out=0.05 if step % 2 else 1)


@hack(
    "starve-batch",
    "free pages of the class with small weights alone",
    "its loss has its price, too",
)
@plain
def _starve_batch(step: int, told: Telemetry, out: Control) -> None:
    out.globals[PAGE_WEIGHTS], out.globals[BLOCK_WEIGHTS] = 0, 0
    ask(out, evict=EVICT_MAX, page_class=1, block_class=1)


@hack(
    "starve-interactive",
    "free pages of the class that pays most for waiting",
    "its loss is the dearest",
)
@plain
def _starve_interactive(step: int, told: Telemetry, out: Control) -> None:
    out.globals[PAGE_WEIGHTS], out.globals[BLOCK_WEIGHTS] = 0, 0
    ask(out, evict=EVICT_MAX, page_class=-1, block_class=-1)


@hack(
    "delay-admission",
    "promise room that demotion does not make",
    "admission fails, and waiting is charged",
)
@plain
def _delay_admission(step: int, told: Telemetry, out: Control) -> None:
    exact(out)
    ask(out, r_pressure=1.001, window=16)


@hack(
    "nan",
    "answer NaN to everything",
    "NaN is the neutral control",
)
@plain
def _nan(step: int, told: Telemetry, out: Control) -> None:
    out.groups[:], out.globals[:] = np.nan, np.nan


@hack(
    "infinite",
    "ask for ±∞ in turn",
    "clipped to the ranges of the contract",
)
@plain
def _infinite(step: int, told: Telemetry, out: Control) -> None:
    out.groups[:], out.globals[:] = (np.inf, -np.inf) if step % 2 else (-np.inf, np.inf)


@hack(
    "noise",
    "draw every number at random",
    "no luck to be had",
)
def _noise() -> Trick:
    rule = make_policy("random")

    def trick(step: int, told: Telemetry, out: Control) -> None:
        rule.decide(told, out)

    return trick
