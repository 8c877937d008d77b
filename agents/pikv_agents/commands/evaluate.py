"""`pikv evaluate`: policies and their rivals on held-out workloads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Play policies and heuristics on the same workloads: J with intervals, by family and over all.

    Policies are bundles or heuristics such as `lazy/h2o`; a bundle is shown as learned. A test family that a
    bundle saw in training is refused, also under another name; another family that it saw is called seen.
    `--record-episodes` keeps what was played, `--replay` plays such records again.
    """

    policies: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="POLICY...")] = ()
    """Bundle folders or heuristics, besides the usual rivals."""
    library: Path | None = None
    """Trace library; by default the built-in one."""
    families: tuple[str, ...] = ()
    """Workload families; by default those of the split that the traces can play."""
    split: Literal["train", "validation", "test"] | None = None
    """All families must be of this split; `test` also refuses any that a bundle saw. Without families: test."""
    pressure: tuple[float, ...] = (2.0,)
    """Working set over the cap."""
    seeds: int = 10
    """Workloads of every family."""
    headroom: Path | None = None
    """JSON of `pikv headroom`: static-global, headroom of the families, feasible schedule."""
    quick: bool = False
    """Short episodes."""
    horizon_s: float | None = None
    """Arrival horizon, model seconds; by default 1800, quick: 600."""
    profile: str = "cpu-gloo"
    """Machine whose prices count."""
    geometry: str = "embedded"
    """Model that is priced."""
    token_scale: int = 1
    """Tokens of that model that one recorded token stands for."""
    ranks: int = 2
    """Ranks that pages are sharded over."""
    host: float = 0.0
    """Host memory for evicted blocks, over the cap on the device; 0: none."""
    control_latency_s: float = 0.0
    """Model time from a decision until its control comes into force."""
    runner: str = "native"
    """Runner of bundles: native or numpy."""
    threads: int = 0
    """Threads; 0: one for each core."""
    record_episodes: Path | None = None
    """Write a record of every episode that is played into this folder."""
    replay: tuple[Path, ...] = ()
    """Play these records again, and nothing else; a number that differs is an error."""

    def run(self) -> dict[str, Any]:
        """Print the tables, return the evaluation (or what the replays came to)."""
        if self.replay:
            if self.policies:
                raise ValueError(f"--replay plays records alone: leave out {' '.join(self.policies)}")
            return self._replay()
        return self._evaluate()

    def _replay(self) -> dict[str, Any]:
        from pikv_agents import replays
        from pikv_agents.commands.options import counted, open_library
        from pikv_agents.report.tables import console

        update, close = counted("replay")
        try:
            rows = replays.replay_files(self.replay, open_library(self.library), update)
        finally:
            close()
        console().print(replays.table(rows))
        if self.json is not None:
            from pikv_agents.tracking.metrics import write_json

            write_json(self.json, {"replays": rows})  # here, because a difference ends in an error
        replays.check(rows)
        return {"replays": rows}

    def _evaluate(self) -> dict[str, Any]:
        from pikv_agents.commands.options import (
            at_least_one,
            counted,
            default_threads,
            environment,
            open_library,
            origin,
            playable,
        )
        from pikv_agents.evaluation import evaluate
        from pikv_agents.report import tables
        from pikv_agents.rollout import Suite
        from pikv_agents.static_grid import QUICK_GRID, STATIC_GRID

        at_least_one(seeds=self.seeds)
        library = open_library(self.library)
        families = playable(self.families, library, self.split or "test")
        update, close = counted("evaluate")
        env = environment(self.profile, self.geometry, self.quick, self.horizon_s,
                          self.control_latency_s, ranks=self.ranks, host=self.host,
                          token_scale=self.token_scale, families=playable((), library, "train"))  # fmt: skip
        suite = Suite(library, env, self.threads or default_threads(), update, self.record_episodes)
        known = None if self.headroom is None else json.loads(self.headroom.read_text(encoding="utf-8"))
        try:
            found = evaluate(
                label(self.policies), suite, families, range(self.seeds), self.pressure,
                grid=QUICK_GRID if self.quick else STATIC_GRID,
                headroom=known, split=self.split, runner=self.runner, meta=origin(),
            )  # fmt: skip
        finally:
            close()
        console = tables.console()
        console.print(tables.families(found))
        console.print(tables.evaluation(found))
        return found


def label(policies: tuple[str, ...]) -> dict[str, str]:
    """Names for the tables: heuristics by their spec, bundles as learned (by folder where there are several)."""
    from pikv_runtime.controllers import is_spec

    bundles = [p for p in policies if not is_spec(p)]
    names = [Path(p).name for p in bundles]
    return {_label(p, names, is_spec(p)): p for p in policies}


def _label(policy: str, names: list[str], spec: bool) -> str:
    if spec:
        return policy
    if len(names) == 1:
        return "learned"
    name = Path(policy).name
    return f"learned {name}" if names.count(name) == 1 else f"learned {policy}"
