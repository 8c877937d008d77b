"""The rows of `pikv bench env`: name, value, unit, and what it is compared with."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from rich.table import Table

from pikv_agents.learning_speed import Learning, learning_speed
from pikv_agents.presets import QUICK
from pikv_agents.report.tables import plain_table
from pikv_env import speed
from pikv_env.sb3 import TraceVecEnv

Row = dict[str, Any]
TARGET_INTERVALS, TARGET_RATIO, TARGET_LEARNING = 20_000, 1_000, 8_000
GROWN_LANES = 4
ROLLOUTS = 2  # of a repeat
PACKAGES = ("numpy", "numba", "torch", "stable-baselines3", "gymnasium")


def rows(lanes: int, threads: int, repeats: int, *, grow: bool) -> Iterator[Row]:
    """Measure one row after the other; `grow`: those of other sizes, too."""
    live_s = _live_interval_s()
    for name, instance, steer in (
        ("reference", speed.REFERENCE, False),
        ("reference, every lever in use", speed.REFERENCE, True),
        ("intervals of 32 iterations", speed.LONG, False),
    ):
        found = speed.measure(instance, lanes, threads, _steps(instance), repeats, steer)
        yield _row(name, found.intervals_per_s, "intervals/s", low=found.low, high=found.high, holds=found.per_interval)
        if name == "reference":
            alone = 1.0 / live_s
            yield _row("live runtime, reference", alone, "intervals/s")
            yield _row("reference over live", found.intervals_per_s * live_s, "ratio", baseline=alone)
    yield from _learning_rows(lanes, threads, repeats)
    if grow:
        yield from _grown_rows(repeats)


def _row(name: str, value: float, unit: str, baseline: float | None = None, **more: Any) -> Row:
    ratio = None if baseline is None else value if unit == "ratio" else value / baseline
    return {"name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio, **more}


def _steps(instance: speed.Instance) -> int:
    """Steps of a run: enough to time, fewer where they are long."""
    return max(8, round(160 / instance.iterations))


def _live_interval_s() -> float:
    import torch

    from pikv_runtime.models import load_model

    torch.set_num_threads(1)
    return median(speed.live_interval_s(speed.REFERENCE, load_model("embedded")[0], intervals=5))


def _learning_rows(lanes: int, threads: int, repeats: int) -> Iterator[Row]:
    """PPO with the quick preset's hyperparameters: on the reference instance, with the preset's levers and with all;
    and on the quick preset's own environment, stepped and learned on."""
    intervals = QUICK.rollout * (1 + ROLLOUTS * repeats)
    for name, levers in (("reference, PPO end to end", QUICK.levers), ("reference, PPO of every lever", ())):
        loaded = speed.LoadedView(speed.REFERENCE, lanes, intervals, threads)
        learnt = learning_speed(
            loaded, replace(QUICK, levers=levers), ROLLOUTS, repeats, partial(speed.demand_busy, loaded.batch)
        )
        yield _learning_row(name, learnt)
        loaded.close()
    view = TraceVecEnv(QUICK.num_envs, config=QUICK.env, seed=0, threads=threads)
    steps = 4096 // QUICK.num_envs
    alone = speed.view_speed(view, steps, repeats)
    yield _row("quick preset, stepped", median(alone), "intervals/s", low=min(alone), high=max(alone))
    yield _learning_row("quick preset, PPO end to end", learning_speed(view, QUICK, ROLLOUTS, repeats), median(alone))
    view.close()


def _learning_row(name: str, learnt: Learning, baseline: float | None = None) -> Row:
    low, high, shares = min(learnt.rates), max(learnt.rates), {"stepping": learnt.stepping, "updating": learnt.updating}
    return _row(name, learnt.steps_per_s, "steps/s", baseline, low=low, high=high, shares=shares)


def _grown_rows(repeats: int) -> Iterator[Row]:
    """Microseconds of an interval of one lane as one size grows, each beside the reference in turns: one thread, few
    lanes."""
    turns, sizes = max(3, repeats), list(speed.grown())
    steps = _steps(speed.REFERENCE)
    reference = speed.warm_batch(speed.REFERENCE, GROWN_LANES, 1, steps * turns * len(sizes))
    for what, size, instance in sizes:
        batch = speed.warm_batch(instance, GROWN_LANES, 1, _steps(instance) * turns)
        pairs = [(speed.rate(reference, steps), speed.rate(batch, _steps(instance))) for _ in range(turns)]
        ratio = median(before / after for before, after in pairs)
        beside, alone = (1e6 / median(column) for column in zip(*pairs, strict=True))
        row = _row(f"{what}={size}", alone, "µs/interval", baseline=beside)
        yield {**row, "ratio": ratio}


def versions() -> dict[str, str]:
    """Python and the packages that matter for speed."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    out = plain_table("Speed of the environment", ("what",), ("value", "unit", "range", "ratio"))
    for row in rows:
        span = f"{row['low']:,.0f} to {row['high']:,.0f}" if "low" in row else ""
        ratio = "" if row["ratio"] is None else f"{row['ratio']:,.2f}"
        digits = 1 if row["value"] < 100 else 0
        out.add_row(row["name"], f"{row['value']:,.{digits}f}", row["unit"], span, ratio)
    return out


def in_words(rows: list[Row]) -> str:
    """What the aims say of it, met or not."""
    named = {row["name"]: row["value"] for row in rows}
    aims = (
        ("reference", TARGET_INTERVALS, "intervals/s"),
        ("reference over live", TARGET_RATIO, "times the live runtime"),
        ("reference, PPO end to end", TARGET_LEARNING, "steps/s"),
    )
    lines = []
    for name, aim, unit in aims:
        verdict = "reached" if named[name] >= aim else "not reached"
        lines.append(f"{name}: {named[name]:,.0f}, aim {aim:,} {unit}: {verdict}")
    return "\n".join(lines)
