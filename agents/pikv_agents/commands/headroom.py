"""`pikv headroom`: what there is to gain, before any learning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Headroom(Command):
    """J of fixed settings, heuristics and a clairvoyant feasible schedule, by family and pressure.

    headroom = (J_static-tuned - J_feasible) / J_static-tuned. Families under 10 % do not count later.
    """

    library: Path | None = None
    """Trace library; by default the built-in one."""
    families: tuple[str, ...] = ()
    """Workload families; by default all that the traces can play."""
    pressure: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Working set over the cap."""
    seeds: int = 3
    """Workloads of every family."""
    quick: bool = False
    """Small grid, short episodes, one workload and one pressure of each: about a minute."""
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
    threads: int = 0
    """Threads; 0: one for each core."""

    def run(self) -> dict[str, Any]:
        """Print the table, return its rows."""

        from pikv_agents.commands.options import (
            at_least_one,
            counted,
            default_threads,
            environment,
            open_library,
            origin,
            playable,
        )
        from pikv_agents.evaluation import priced
        from pikv_agents.headroom import HeadroomConfig, headroom
        from pikv_agents.report import tables
        from pikv_agents.rollout import Suite

        at_least_one(seeds=self.seeds)
        library = open_library(self.library)
        families = playable(self.families, library)
        update, close = counted("headroom")
        env = environment(
            self.profile,
            self.geometry,
            self.quick,
            self.horizon_s,
            self.control_latency_s,
            ranks=self.ranks,
            host=self.host,
            token_scale=self.token_scale,
            families=playable((), library, "train"),
        )
        suite = Suite(library, env, self.threads or default_threads(), update)
        if self.quick:
            pressures = self.pressure if self.pressure != Headroom.pressure else (2.0,)
            config = HeadroomConfig.quick(tuple(range(min(self.seeds, 1))), pressures)
        else:
            config = replace(HeadroomConfig(), seeds=tuple(range(self.seeds)), pressures=self.pressure)
        try:
            found = headroom(suite, families, config)
        finally:
            close()
        console = tables.console()
        console.print(tables.headroom(found["rows"]))
        console.print(f"static_global: {found['static_global']}", highlight=False)
        return found | {"meta": origin() | priced(suite)}
