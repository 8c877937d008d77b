"""`pikv parity`: the trace environment against the live runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pikv_agents.commands.base import Command

POLICIES = (
    "capped_exact/lru",
    "lazy/lru",
    "pressure_proportional/h2o",
    "static:ratio=2,fan_out=0.5/h2o",
    "static:ratio=3,evict=0.1,fan_out=0.25/streaming_llm",
    "random",
)


@dataclass(frozen=True, kw_only=True)
class Parity(Command):
    """Compare the trace environment with the live runtime, policy by policy.

    Level A (model clock, recorded signals) must be identical at every iteration. Level B measures on the wall clock.
    """

    library: Path | None = None
    """Recorded traces; the built-in ones by default."""
    family: str = "facts-poisson"
    """Workload family."""
    policies: tuple[str, ...] = POLICIES
    """Heuristics' specs."""
    pressure: float = 2.0
    """Working set over cap."""
    horizon_s: float = 20.0
    """Seconds of arrivals, on the clock of the level."""
    load: float = 0.3
    """Offered load; the wall clock of a busy machine is slower than its profile."""
    ranks: int = 1
    """Ranks; level B runs each in a process of its own."""
    level: str = "ab"
    """Levels to run: a, b or ab."""
    repeats: int = 2
    """Live repeats per policy at level B."""
    seed: int = 0
    """Seed of the workload."""

    def run(self) -> dict[str, Any]:
        """Run the levels and print what they found."""
        from pikv_agents.commands.options import at_least_one
        from pikv_agents.report import tables
        from pikv_env import EnvConfig, WorkloadPool
        from pikv_env.builtin import resolve_library
        from pikv_env.parity import level_a, level_b
        from pikv_runtime.models import load_model

        if not self.level or set(self.level) - set("ab"):
            raise ValueError(f"level={self.level!r}: allowed are 'a', 'b' and 'ab'")
        at_least_one(repeats=self.repeats, policies=len(self.policies))
        config = EnvConfig(
            families=(self.family,),
            horizon_s=self.horizon_s,
            load=(self.load, self.load),
            workloads=1,
            ranks=self.ranks,
        )
        pool = WorkloadPool(resolve_library(self.library), config, self.seed)
        model = load_model("embedded")[0]
        console, result = tables.console(), dict[str, Any]()
        if "a" in self.level:
            result["level_a"] = a = level_a(pool, self.policies, pressure=self.pressure, model=model)
            iterations = sum(r["iterations"] for r in a["rows"])
            verdict = "identical" if a["identical"] else f"DIFFERENT ({a['first_difference']})"
            console.print(f"level A: {len(a['rows'])} policies, {iterations} iterations: {verdict}")
        if "b" in self.level:
            b = level_b(pool, self.policies, pressure=self.pressure, repeats=self.repeats, model=model)
            result["rows"] = b.pop("rows")
            result["level_b"] = b
            for name, value in b.items():
                console.print(f"level B: {name} = {'too few pairs' if value is None else f'{value:.4g}'}")
        return result
