"""`pikv quickstart`: the whole loop once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class QuickstartCommand(Command):
    """Serve and record with a real MoE, measure headroom, train, evaluate, export, run live on two ranks, report.

    Takes about eight minutes of two cores. Replaces what an earlier quickstart left in the folder.
    """

    out: Path = Path("runs/quickstart")
    """Folder of the run."""
    seed: int = 0
    """All that is drawn derives from it."""
    track: Literal["offline", "online", "disabled"] = "offline"
    """W&B; metrics.jsonl is written in any case."""
    threads: int = 0
    """Threads; 0: one for each core."""

    def run(self) -> dict[str, Any]:
        """All stages; returns the summary."""
        from pikv_agents.commands.options import command_line, default_threads
        from pikv_agents.quickstart import Quickstart, QuickstartConfig
        from pikv_agents.report import tables

        config = replace(
            QuickstartConfig(), seed=self.seed, track=self.track, threads=self.threads or default_threads()
        )
        return Quickstart(config, self.out, tables.console(), command_line()).run()
