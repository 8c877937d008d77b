"""Rows, sections and timing of `gpu_check.py`."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


@dataclasses.dataclass
class Context:
    """Where the checks run, and how large."""

    device: torch.device
    tiny: bool
    """Shapes for a dry run on a CPU: same code, no meaning in the times."""
    facts: dict[str, float] = dataclasses.field(default_factory=dict)
    """What earlier sections measured and later ones compare with."""
    deadline: float = float("inf")
    """`time.monotonic()` at which the running section should be over."""

    def out_of_time(self, needs_s: float = 0.0) -> bool:
        return time.monotonic() + needs_s > self.deadline


class OutOfTimeError(RuntimeError):
    """A section did not get through its cases; the rows it has are kept."""


class Report:
    """Results so far; a row is kept even where its check fails, and other sections run where one has raised."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.sections: list[dict[str, Any]] = []
        self.failures: list[str] = []

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        baseline: float | None = None,
        target: str | None = None,
        ok: bool | None = None,
    ) -> None:
        """Keep a result; `target` says in words what `ok` was judged by. Not judged: both None."""
        ratio = None if not baseline else value / baseline
        row = {"name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio}
        self.rows.append(row | {"target": target, "ok": ok})
        if ok is False:
            self.failures.append(f"{name}: {value:.4g} {unit}, wanted {target}")

    def aim(self, name: str, value: float, unit: str, target: str, reached: bool, context: Context) -> None:
        """Keep a speed with its target, which is judged on a GPU only."""
        self.add(name, value, unit, None, target, None if context.tiny else reached)

    def run(self, name: str, section: Callable[[Report, Context], None], context: Context, budget_s: float) -> None:
        """Run a section within its time; what it raises is recorded and counts as a failure."""
        started = time.monotonic()
        context.deadline = started + budget_s
        error = None
        try:
            section(self, context)
        except Exception:
            error = traceback.format_exc()
            self.failures.append(f"section {name}: {error.strip().splitlines()[-1]}")
            print(f"[{name}] {error}", flush=True)
        seconds = time.monotonic() - started
        self.sections.append({"name": name, "seconds": seconds, "budget_s": budget_s, "error": error})
        print(f"[{name}] {seconds:.1f} s", flush=True)
        if context.device.type == "cuda" and error is None:
            torch.cuda.empty_cache()

    def table(self) -> str:
        """A short table: judged rows first, then the rest."""
        marks = {True: "pass", False: "FAIL", None: ""}
        lines = []
        for row in sorted(self.rows, key=lambda row: row["ok"] is None):
            ratio = "" if row["ratio"] is None else f"{row['ratio']:8.3f}x"
            lines.append(
                f"{marks[row['ok']]:5}{row['name'][:66]:66} {row['value']:11.5g} {row['unit'][:9]:9} {ratio:9} "
                f"{row['target'] or ''}".rstrip()
            )
        return "\n".join(lines)


def median_us(calls: Sequence[Callable[[], Any]], context: Context, repeats: int = 20) -> float:
    """Median time of one call. On a GPU the calls are captured into one CUDA graph, which is replayed: launches cost no
    host time. Several calls on different inputs keep the second-level cache from holding them."""
    for call in calls:
        call()  # compiles
    if context.device.type != "cuda":
        return _wall_us(calls, 3)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return float(np.median(times))


def host_us(call: Callable[[], Any], repeats: int = 500) -> float:
    """Median wall time of a call that touches no device."""
    call()
    return float(np.median([_wall_us([call], 1) for _ in range(repeats)]))


def _wall_us(calls: Sequence[Callable[[], Any]], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for call in calls:
            call()
        times.append((time.perf_counter() - started) * 1e6 / len(calls))
    return float(np.median(times))
