"""What several commands share: the options that say what is played on, opening a trace library, progress."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pikv_env.config import EnvConfig
    from pikv_env.suites import SuiteSpec
    from pikv_env.traces.library import TraceLibrary

QUICK_HORIZON_S = 600.0
CHANGEABLE = ("profile", "geometry", "token_scale", "ranks", "slots", "load", "host", "horizon_s", "pressure")
"""Options that change a field of the suite of (nearly) the same name."""


def open_library(path: Path | None) -> TraceLibrary:
    """The library of a file, or the built-in one."""
    from pikv_env.builtin import resolve_library

    return resolve_library(path)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model runs, and where."""

    model: str = "embedded"
    """`embedded`, or a directory with a Hugging Face MoE model."""
    device: str = "cpu"
    """cpu, cuda, or auto: a GPU where there is one."""
    dtype: str = "float32"
    """Of weights and native pages: float32, bfloat16, float16, or auto: as saved."""

    def load_model(self) -> Any:
        """The model; ValueError with the reason where there is none to be had."""
        from pikv_runtime.models import load_model

        return load_model(self.model, self.device, self.dtype)[0]


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """On what to play: a suite, and what differs from it."""

    suite: str = "laptop"
    """Machine, model, load, pressures and families under one name; the flags below change parts of it."""
    library: Path | None = None
    """Trace library; by default the built-in one."""
    profile: str | None = None
    """Machine whose prices count; by default the suite's."""
    ranks: int | None = None
    """Ranks that pages are sharded over; by default the suite's."""
    host: float | None = None
    """Host memory for evicted blocks, over the cap on the device, 0: none; by default the suite's."""
    control_latency_s: float = 0.0
    """Model time from a decision until its control comes into force."""

    def given(self) -> dict[str, Any]:
        """The explicit flags among the suite's fields."""
        names = [f.name for f in fields(self) if f.name in CHANGEABLE]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def spec(self) -> SuiteSpec:
        """The suite with the explicit flags in force; UnknownNameError where there is no such suite."""
        from pikv_env.suites import SUITES

        given = self.given()
        asked = given.pop("pressure", None)
        if asked:
            given["pressures"] = asked if isinstance(asked, tuple) else (asked,)
        if isinstance(given.get("load"), float):
            given["load"] = (given["load"], given["load"])
        return replace(SUITES[self.suite], **given)

    def config(self, **changes: Any) -> EnvConfig:
        """The environments' configuration."""
        return late(self.spec().config(**changes), self.control_latency_s)


@dataclass(frozen=True, kw_only=True)
class EnvironmentOptions(MachineOptions):
    """All of an environment that a study may change."""

    geometry: str | None = None
    """Model that is priced; by default the suite's."""
    token_scale: int | None = None
    """Tokens of that model that one recorded token stands for; by default the suite's."""
    slots: int | None = None
    """Requests that run at a time; by default the suite's."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions(EnvironmentOptions):
    """What headroom and evaluation share besides."""

    families: tuple[str, ...] = ()
    """Workload families: names, files of your own (.toml, .json) or trace:FILE.jsonl."""
    pressure: tuple[float, ...] = ()
    """Working set over the cap; by default all of the suite's, quick: 2."""
    quick: bool = False
    """A first look: short episodes, a small grid, one pressure."""
    horizon_s: float | None = None
    """Arrival horizon, model seconds; by default the suite's, quick: 600."""
    threads: int = 0
    """Threads; 0: one for each core."""

    def given(self) -> dict[str, Any]:
        """See `MachineOptions`; quick mode counts where no flag says otherwise."""
        from pikv_env.suites import QUICK_PRESSURE

        quick = {"horizon_s": QUICK_HORIZON_S, "pressure": (QUICK_PRESSURE,)} if self.quick else {}
        told = super().given()
        return quick | {name: value for name, value in told.items() if value != ()}

    def announce(self) -> str:
        """Which suite is played, and what of its axis is not."""
        from pikv_env.suites import SUITES

        spec, whole = self.spec(), SUITES[self.suite]
        left = [f"{p:g}" for p in whole.pressures if p not in spec.pressures]
        out = f"; quick: not the pressures {', '.join(left)}" if self.quick and left else ""
        told = ", ".join(f"{p:g}" for p in spec.pressures)
        return f"suite {spec.id}: {spec.description}. Pressure {told}{out}"


def late(config: EnvConfig, control_latency_s: float) -> EnvConfig:
    """`config` with controls that come into force so long after they were decided."""
    return replace(config, runtime=replace(config.runtime, control_latency_s=control_latency_s))


def playable(families: Sequence[str], library: TraceLibrary, among: Iterable[str] | None = None) -> tuple[str, ...]:
    """`families` (names or files), or (if none are given) what the library can play `among` others (None: all).

    Raises:
        UnknownNameError: No such family.
        FamilyFileError: A file that is no family.
        ValueError: The library has none of them.
    """
    from pikv_env.workloads.families import FAMILIES
    from pikv_env.workloads.own import named_families

    own = named_families(families)
    given = own or tuple(FAMILIES if among is None else among)
    kept = tuple(f for f in given if set(FAMILIES[f].kinds) <= set(library.families))
    if own and kept != given:
        lost = next(f for f in given if f not in kept)
        raise ValueError(
            f"family {lost!r} needs {list(FAMILIES[lost].kinds)}, the traces have {list(library.families)}"
        )
    if not kept:
        raise ValueError(f"the traces hold {list(library.families)}: none of the families {list(given)} can be played")
    return kept


def default_threads() -> int:
    """Threads for lanes: the cores this process may use, at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def counted(label: str) -> tuple[Callable[[int], None], Callable[[], None]]:
    """A counter of finished episodes on stderr, and the call that ends it."""
    from tqdm import tqdm

    bar = tqdm(desc=label, unit="episode", leave=False)
    return (lambda count: (bar.update(count), None)[1]), bar.close


def command_line() -> str:
    """What was typed, as far as it is a `pikv` command."""
    return shlex.join(["pikv", *sys.argv[1:]])


def origin() -> dict[str, str]:
    """Command, commit, machine and date: what a published number must name."""
    from datetime import date

    from pikv_agents.exporting import commit, machine

    return {"command": command_line(), "commit": commit(), "machine": machine(), "date": date.today().isoformat()}


def at_least_one(**values: int) -> None:
    """Raise ValueError for the first value below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
