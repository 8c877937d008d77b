"""`pikv bench`: what this machine gets out of the project, as rows of one JSON object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import at_least_one, default_threads, origin


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure speed.

    `env`: control intervals per second of the trace environment on its reference instance (16 running requests, 4,000
    live pages, 10,000 cached blocks, 64 lanes), beside the live runtime on the same instance; PPO end to end on it and
    on the quick preset; how cost grows with pages, blocks, groups, requests and iterations. Medians of several runs.
    `policy`: microseconds of a decision by runner, beside SB3, torch and ONNX Runtime; ranking by utility; a decision
    beside a decode step, served live.
    """

    what: Annotated[Literal["env", "policy"], tyro.conf.Positional] = "env"
    """What to measure."""
    lanes: int = 64
    """Environments side by side."""
    threads: int = 0
    """Threads that step them; 0: the cores of this process."""
    repeats: int = 5
    """Runs of which the median is reported."""
    quick: bool = False
    """Fewer lanes and runs, nothing grown, nothing served: a look, not a figure to publish."""
    bundle: str = "balance"
    """policy: path or name of the bundle whose network decides."""

    def run(self) -> dict[str, Any]:
        """Measure, print the rows, return them."""
        return self._policy() if self.what == "policy" else self._env()

    def _policy(self) -> dict[str, Any]:
        from tqdm import tqdm

        from pikv_agents import policy_bench as bench
        from pikv_agents.environment_bench import versions
        from pikv_agents.report import tables
        from pikv_runtime.policy import shelf

        at_least_one(repeats=self.repeats)
        path = shelf.find_bundle(self.bundle)
        found = bench.rows(path, 500 if self.quick else 5000, self.repeats, live=not self.quick)
        rows = list(tqdm(found, "measuring", unit="row", leave=False))
        console = tables.console()
        console.print(bench.table(rows))
        console.print(bench.in_words(rows))
        meta = {**origin(), "bundle": path.name, "groups": list(bench.GROUPS), "versions": versions()}
        return {"rows": rows, "meta": meta}

    def _env(self) -> dict[str, Any]:
        from tqdm import tqdm

        from pikv_agents import environment_bench as bench
        from pikv_agents.report import tables

        at_least_one(lanes=self.lanes, repeats=self.repeats)
        threads = self.threads or default_threads()
        lanes, repeats = (min(self.lanes, 8), 2) if self.quick else (self.lanes, self.repeats)
        rows = []
        for row in tqdm(bench.rows(lanes, threads, repeats, grow=not self.quick), "measuring", unit="row", leave=False):
            rows.append(row)
        console = tables.console()
        console.print(bench.table(rows))
        console.print(bench.in_words(rows))
        meta = {**origin(), "lanes": lanes, "threads": threads, "repeats": repeats, "versions": bench.versions()}
        return {"rows": rows, "meta": meta}
