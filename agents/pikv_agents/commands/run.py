"""`pikv run`: serve one workload for real, under one policy or several."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import MachineOptions, ModelOptions

if TYPE_CHECKING:
    from pikv_env.pool import WorkloadPool
    from pikv_env.suites import SuiteSpec


@dataclass(frozen=True, kw_only=True)
class Run(Command, MachineOptions, ModelOptions):
    """Serve a held-out workload with a real model on one rank or several, and measure J with its parts.

    Each policy serves the same requests under the same cap; ranks are processes over gloo. `--shadow` asks another
    policy beside each, `--log` keeps decisions, `--canary` tries another policy on a share of the requests. `--replay`
    serves nothing: it makes a log's decisions again.
    """

    policies: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="POLICY...")] = ("lazy/h2o",)
    """Bundle folders, heuristics such as `lazy/h2o`, or classes `python:FILE.py:CLASS`."""
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
    seed: int = 0
    """Seed of the workload."""
    record_log: Path | None = None
    """Folder for the runs' serving logs, one `.npz` by policy, for `pikv parity --log`."""
    log: Path | None = None
    """Folder for decision logs, one `.jsonl` by policy."""
    log_share: float = 1.0
    """Share of decisions that is logged, by hash."""
    shadow: str = ""
    """Policy that is asked beside the one that decides, and changes nothing."""
    canary: str = ""
    """Policy that decides on one of several equal servers, beside the (one) policy given."""
    canary_share: float = 0.25
    """Share of the requests that goes to the canary: one server of 1 / share."""
    replay: Path | None = None
    """Decision log: make its decisions again, bit for bit."""
    policy: str = ""
    """With --replay: what another policy would have decided on the same telemetry."""

    def run(self) -> dict[str, Any]:
        """Serve under every policy, print the table."""
        if self.policy and self.replay is None:
            raise ValueError(f"--policy {self.policy} belongs to --replay; what serves is named without a flag")
        if self.replay is not None:
            return self._replay(self.replay)
        return self._canary() if self.canary else self._serve()

    def _pool(self, servers: int = 1) -> WorkloadPool:
        from pikv_agents.live import live_pool
        from pikv_env.workloads.own import named_families

        spec = self.spec()
        check_live(spec)
        (family,) = named_families((self.family,))
        return live_pool(
            self.library, family, self.seed, spec.ranks, servers * self.load, self.horizon_s, profile=spec.profile,
            host=spec.host, control_latency_s=self.control_latency_s,
        )  # fmt: skip

    def _serve(self) -> dict[str, Any]:
        from pikv_agents.live import live_section
        from pikv_agents.report import decisions, tables
        from pikv_runtime.policy import Watch

        section, results = live_section(
            self._pool(), {p: p for p in self.policies}, self.pressure, clock=self.clock, model=self.load_model(),
            record=self.record_log, watch=Watch(self.log, self.log_share, self.shadow),
        )  # fmt: skip
        console = tables.console()
        console.print(tables.live(section))
        for name, result in results.items():
            if result.shadow:
                console.print(decisions.difference(result.shadow, f"Shadow of {name}", "applied", self.shadow))
        return {**section, "runs": {name: asdict(result) for name, result in results.items()}}

    def _canary(self) -> dict[str, Any]:
        from pikv_agents.canary import Fleet, compare
        from pikv_agents.report import decisions, tables

        if len(self.policies) != 1:
            raise ValueError(f"--canary is compared with one policy: {len(self.policies)} given")
        if not 0 < self.canary_share <= 0.5:
            raise ValueError(f"canary_share={self.canary_share}: must be more than 0, at most 0.5")
        servers = round(1 / self.canary_share)
        fleet = Fleet(self._pool(servers), servers, self.pressure, self.clock, self.load_model())
        rows = list(fleet.play(self.policies[0], self.canary))
        metrics = compare(rows)
        tables.console().print(decisions.canary(rows, metrics))
        return {"servers": rows, "metrics": metrics}

    def _replay(self, log: Path) -> dict[str, Any]:
        from pikv_agents.report import decisions, tables
        from pikv_runtime.policy import DecisionLogError, replay, what_if

        if self.policy:
            found = what_if(log, self.policy)
            tables.console().print(decisions.difference(found, f"{log} under {self.policy}", "logged", self.policy))
            return found
        found = replay(log)
        tables.console().print(decisions.difference(found, f"{log} once more", "logged", "replayed"))
        if found["identical"] < found["decisions"]:
            count = found["decisions"] - found["identical"]
            raise DecisionLogError(f"{log}: {count} decisions differ, the first is {found['first_difference']}")
        return found


def check_live(spec: SuiteSpec) -> None:
    """Raise ValueError for a suite of a model that is priced and cannot be served here."""
    if (spec.geometry, spec.token_scale) != ("embedded", 1):
        raise ValueError(
            f"suite={spec.id!r} prices {spec.geometry} at token_scale={spec.token_scale}, a what-if: a live run serves "
            "a real model; allowed is a suite of the embedded geometry, such as laptop"
        )
