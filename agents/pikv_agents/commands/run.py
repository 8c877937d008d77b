"""`pikv run`: serve one workload for real, under one policy or several."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Serve a held-out workload with a real model on one rank or several, and measure J with its parts.

    Each policy serves the same requests under the same cap; ranks are processes over gloo.
    """

    policies: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="POLICY...")] = ("lazy/h2o",)
    """Bundle folders or heuristics such as `lazy/h2o`."""
    library: Path | None = None
    """Recorded traces, whose prompts are served; by default the built-in ones."""
    family: str = "needle-onoff"
    """Workload family."""
    pressure: float = 2.0
    """Working set over the cap."""
    load: float = 0.12
    """Share of compute that the workload offers, by the profile."""
    horizon_s: float = 40.0
    """Seconds of arrivals."""
    ranks: int = 2
    """Ranks, each a process."""
    host: float = 0.0
    """Host memory for evicted blocks, over the cap on the device; 0: none."""
    control_latency_s: float = 0.0
    """Time from a decision until its control comes into force."""
    clock: Literal["wall", "model"] = "wall"
    """Measured time, or the deterministic model clock."""
    model: str = "embedded"
    """`embedded`, or a directory with a Hugging Face MoE model."""
    profile: str = "cpu-gloo"
    """Prices: of the model clock, and of what policies are told."""
    seed: int = 0
    """Seed of the workload."""
    record_log: Path | None = None
    """Folder for the runs' serving logs, one `.npz` by policy, for `pikv parity --log`."""

    def run(self) -> dict[str, Any]:
        """Serve under every policy, print the table."""

        from pikv_agents.live import live_pool, live_section
        from pikv_agents.report import tables

        pool = live_pool(
            self.library, self.family, self.seed, self.ranks, self.load, self.horizon_s, profile=self.profile,
            host=self.host, control_latency_s=self.control_latency_s,
        )  # fmt: skip
        section, results = live_section(
            pool, {p: p for p in self.policies}, self.pressure, clock=self.clock, model=self.model,
            record=self.record_log,
        )  # fmt: skip
        tables.console().print(tables.live(section))
        return {**section, "runs": {name: asdict(result) for name, result in results.items()}}
