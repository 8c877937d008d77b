"""What several commands share: opening a trace library, the environment's configuration, progress."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pikv_env.config import EnvConfig
    from pikv_env.traces.library import TraceLibrary

QUICK_HORIZON_S = 600.0


def open_library(path: Path | None) -> TraceLibrary:
    """The library of a file, or the built-in one."""
    from pikv_env.builtin import resolve_library

    return resolve_library(path)


def late(config: EnvConfig, control_latency_s: float) -> EnvConfig:
    """`config` with controls that come into force so long after they were decided."""
    return replace(config, runtime=replace(config.runtime, control_latency_s=control_latency_s))


def environment(
    profile: str,
    geometry: str,
    quick: bool,
    horizon_s: float | None = None,
    control_latency_s: float = 0.0,
    **changes: Any,
) -> EnvConfig:
    """The environments' configuration; quick means short episodes."""
    from pikv_env.config import EnvConfig

    given = {"profile": profile, "geometry": geometry, **changes}
    if horizon_s is not None or quick:
        given["horizon_s"] = horizon_s if horizon_s is not None else QUICK_HORIZON_S
    return late(replace(EnvConfig(), **given), control_latency_s)


def playable(families: Sequence[str], library: TraceLibrary, split: str | None = None) -> tuple[str, ...]:
    """`families`, or (if none are given) all that the library can play, of one split or of all.

    Raises:
        UnknownNameError: No such family.
        ValueError: The library has none of them.
    """
    from pikv_env.workloads.families import FAMILIES

    given = tuple(families) or tuple(f for f in FAMILIES if split in (None, FAMILIES[f].split))
    kept = tuple(f for f in given if set(FAMILIES[f].kinds) <= set(library.families))
    if families and kept != given:
        lost = next(f for f in given if f not in kept)
        raise ValueError(
            f"family {lost!r} needs {list(FAMILIES[lost].kinds)}, the traces have {list(library.families)}"
        )
    if not kept:
        raise ValueError(f"the traces hold {list(library.families)}: no {split or ''} family can be played")
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
