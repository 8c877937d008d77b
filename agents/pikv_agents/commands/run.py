"""`pikv run`: serve one workload for real, under one policy or several."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import MachineOptions

if TYPE_CHECKING:
    from pikv_env.suites import SuiteSpec


@dataclass(frozen=True, kw_only=True)
class Run(Command, MachineOptions):
    """Serve a held-out workload with a real model on one rank or several, and measure J with its parts.

    Each policy serves the same requests under the same cap; ranks are processes over gloo.
    """

    policies: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="POLICY...")] = ("lazy/h2o",)
    """Bundle folders or heuristics such as `lazy/h2o`."""
    family: str = "needle-onoff"
    """Workload family: a name, or a file of your own (.toml, .json) that shares recorded text."""
    pressure: float = 2.0
    """Working set over the cap."""
    load: float = 0.12
    """Share of compute that the workload offers, by the profile."""
    horizon_s: float = 40.0
    """Seconds of arrivals."""
    clock: Literal["wall", "model"] = "wall"
    """Measured time, or the deterministic model clock."""
    model: str = "embedded"
    """`embedded`, or a directory with a Hugging Face MoE model."""
    seed: int = 0
    """Seed of the workload."""
    record_log: Path | None = None
    """Folder for the runs' serving logs, one `.npz` by policy, for `pikv parity --log`."""

    def run(self) -> dict[str, Any]:
        """Serve under every policy, print the table."""

        from pikv_agents.live import live_pool, live_section
        from pikv_agents.report import tables
        from pikv_env.workloads.own import named_families

        spec = self.spec()
        check_live(spec)
        (family,) = named_families((self.family,))
        pool = live_pool(
            self.library, family, self.seed, spec.ranks, self.load, self.horizon_s, profile=spec.profile,
            host=spec.host, control_latency_s=self.control_latency_s,
        )  # fmt: skip
        section, results = live_section(
            pool, {p: p for p in self.policies}, self.pressure, clock=self.clock, model=self.model,
            record=self.record_log,
        )  # fmt: skip
        tables.console().print(tables.live(section))
        return {**section, "runs": {name: asdict(result) for name, result in results.items()}}


def check_live(spec: SuiteSpec) -> None:
    """Raise ValueError for a suite of a model that is priced and cannot be served here."""
    if (spec.geometry, spec.token_scale) != ("embedded", 1):
        raise ValueError(
            f"suite={spec.id!r} prices {spec.geometry} at token_scale={spec.token_scale}, a what-if: a live run serves "
            "a real model; allowed is a suite of the embedded geometry, such as laptop"
        )
