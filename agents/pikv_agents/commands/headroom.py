"""`pikv headroom`: what there is to gain, before any learning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import StudyOptions


@dataclass(frozen=True, kw_only=True)
class Headroom(Command, StudyOptions):
    """J of fixed settings, heuristics and a clairvoyant feasible schedule, by family and pressure.

    headroom = (J_static-tuned - J_feasible) / J_static-tuned. Families under 10 % do not count later, nor do cells
    whose pressure is not reached.
    """

    seeds: int = 3
    """Workloads of every family; quick: 1."""
    rivals: tuple[str, ...] = ()
    """Rivals by search, a column each: random_search, cma_es, hill_climbing, linucb; or all."""
    budget_intervals: int | None = None
    """Control intervals that each rival may play in training; by default as many as choosing static_global took."""

    def run(self) -> dict[str, Any]:
        """Print the table, return its rows."""
        from pikv_agents.commands.options import at_least_one, counted, default_threads, open_library, origin, playable
        from pikv_agents.evaluation import priced
        from pikv_agents.headroom import HeadroomConfig, headroom
        from pikv_agents.report import tables
        from pikv_agents.rivals import SEARCHES
        from pikv_agents.rollout import Suite

        at_least_one(seeds=self.seeds)
        library, spec, console = open_library(self.library), self.spec(), tables.console()
        families = playable(self.families, library, spec.all_families())
        training = playable((), library, spec.families["train"])
        update, close = counted("headroom")
        suite = Suite(library, self.config(families=training), self.threads or default_threads(), update)
        console.print(self.announce(), highlight=False, soft_wrap=True)
        if self.quick:
            config = HeadroomConfig.quick(tuple(range(min(self.seeds, 1))), spec.pressures)
        else:
            config = replace(HeadroomConfig(), seeds=tuple(range(self.seeds)), pressures=spec.pressures)
        rivals = tuple(SEARCHES) if self.rivals == ("all",) else self.rivals
        config = replace(config, rivals=rivals, budget_intervals=self.budget_intervals)
        try:
            found = headroom(suite, families, config)
        finally:
            close()
        console.print(tables.headroom(found["rows"]))
        console.print(f"static_global: {found['static_global']}", highlight=False)
        for name, one in found["rivals"].items():
            told = f"{one['intervals']:,} of {one['budget_intervals']:,} intervals, {one['trials']} trials"
            console.print(f"{name}: {one['setting']} ({told})", highlight=False, soft_wrap=True)
        return found | {"suite": spec.id, "meta": origin() | priced(suite)}
