"""`pikv compare`: local runs and evaluations side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Compare runs and evaluations: J by policy with intervals, paired differences, training by group.

    Folders are searched for metrics.jsonl (training runs) and evaluation*.json (results of pikv evaluate).
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")]
    """Run folders, metrics.jsonl files or evaluation JSON files."""
    baseline: str | None = None
    """Policy that differences are taken to; by default the best heuristic."""
    split: Literal["test", "validation", "train", "all"] = "test"
    """Families that are compared."""
    unit: Literal["auto", "workload", "run"] = "auto"
    """What one score is: a workload seed, or an evaluation file (for several training seeds). auto: run, if
    several files hold the same policies."""
    metric: str = "charts/episode_return"
    """Training metric; its final value is the mean over the last tenth of the steps."""
    figure: Path | None = None
    """Also draw the comparison into this file (png, svg, pdf)."""

    def run(self) -> dict[str, Any]:
        """Print the tables, draw the figure if asked for, return the comparison."""
        from pikv_agents import comparison
        from pikv_agents.report import compare, tables

        found = comparison.compare(self.paths, self.baseline, self.split, self.unit, self.metric)
        console = tables.console()
        for table in compare.compare_tables(found):
            console.print(table)
        if self.figure is not None:
            from pikv_agents.report.style import save

            console.print(f"figure: {save(compare.compare_figure(found), self.figure)}")
        return found
