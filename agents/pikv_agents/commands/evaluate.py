"""`pikv evaluate`: policies and their rivals on held-out workloads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import StudyOptions


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command, StudyOptions):
    """Play policies and heuristics on the same workloads: J with intervals, by family and over all.

    Policies are bundles or heuristics such as `lazy/h2o`; a bundle is shown as learned. A test family that a
    bundle saw in training is refused, also under another name; another family that it saw is called seen, and one
    that differs from such a family in numbers only a near copy. Neither counts as unseen.
    `--record-episodes` keeps what was played, `--replay` plays such records again.
    """

    policies: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="POLICY...")] = ()
    """Bundle folders or heuristics, besides the usual rivals."""
    split: Literal["train", "validation", "test"] | None = None
    """All families must be of this split; `test` also refuses any that a bundle saw. Without families: test."""
    seeds: int = 10
    """Workloads of every family."""
    headroom: Path | None = None
    """JSON of `pikv headroom`: static-global, headroom of the families, feasible schedule."""
    runner: str = "native"
    """Runner of bundles: native or numpy."""
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
        from pikv_agents.commands.options import at_least_one, counted, default_threads, open_library, origin, playable
        from pikv_agents.evaluation import evaluate
        from pikv_agents.report import tables
        from pikv_agents.rollout import Suite
        from pikv_agents.static_grid import QUICK_GRID, STATIC_GRID

        at_least_one(seeds=self.seeds)
        library, spec, console = open_library(self.library), self.spec(), tables.console()
        families = playable(self.families, library, spec.families[self.split or "test"])
        env = self.config(families=playable((), library, spec.families["train"]))
        update, close = counted("evaluate")
        suite = Suite(library, env, self.threads or default_threads(), update, self.record_episodes)
        known = None if self.headroom is None else json.loads(self.headroom.read_text(encoding="utf-8"))
        console.print(self.announce(), highlight=False, soft_wrap=True)
        try:
            found = evaluate(
                label(self.policies), suite, families, range(self.seeds), spec.pressures,
                grid=QUICK_GRID if self.quick else STATIC_GRID,
                headroom=known, split=self.split, runner=self.runner, meta=origin(), name=spec.id,
            )  # fmt: skip
        finally:
            close()
        for table in tables.evaluations(found):
            console.print(table)
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
