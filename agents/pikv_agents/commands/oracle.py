"""`pikv oracle`: a bracket around the best that clairvoyant decisions could reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import EnvironmentOptions


@dataclass(frozen=True, kw_only=True)
class Oracle(Command, EnvironmentOptions):
    """Bounds on the least J, by family and pressure: a relaxation below, a feasible schedule above.

    Admissions and the clock are those of U, and again those of the best policy that was played; docs/oracle.md says
    what that means. `free` is a bound for any admission.
    """

    families: tuple[str, ...] = ("facts-poisson", "code-bursty")
    """Workload families."""
    pressure: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Working set over the cap."""
    seed: int = 0
    """Workload of every family."""
    horizon_s: float = 600.0
    """Arrival horizon, model seconds."""
    quick: bool = False
    """Search less: wider brackets."""

    def run(self) -> dict[str, Any]:
        """Print the table, return its rows."""
        import sys

        from pikv_agents.commands.options import open_library, origin, playable
        from pikv_agents.oracle_study import QUICK, line, study
        from pikv_agents.report import tables

        if not self.pressure or min(self.pressure) <= 0:
            raise ValueError(f"pressure={self.pressure}: one or more numbers, all positive")
        library = open_library(self.library)
        families = playable(self.families, library)
        rows = study(
            self.config(), families, self.pressure, library, seed=self.seed, effort=QUICK if self.quick else None,
            keep=lambda row: print(line(row), file=sys.stderr),
        )  # fmt: skip
        console = tables.console()
        console.print(_bounds(rows))
        console.print(_policies(rows))
        return {"suite": self.suite, "rows": rows, "meta": origin()}


def _bounds(rows: list[dict[str, Any]]) -> Any:
    """Table of the brackets."""
    from rich.table import Table

    table = Table(title="bounds on J: everybody admitted as in U, and as under the best policy played")
    for name in ("family", "pressure", "lower", "upper", "width", "policy", "J", "its lower", "upper", "width", "free"):
        table.add_column(name, justify="left" if name in ("family", "policy") else "right")
    for row in rows:
        own = row["own"]
        table.add_row(
            row["family"], f"{row['pressure']:g}", f"{row['lower']:.3f}", f"{row['upper']:.3f}", f"{row['width']:.1%}",
            row["played_policy"], f"{row['played']:.3f}", f"{own['lower']:.3f}", f"{own['upper']:.3f}",
            f"{own['width']:.1%}", f"{row['free_bound']:.3f}",
        )  # fmt: skip
    return table


def _policies(rows: list[dict[str, Any]]) -> Any:
    """Table of J by policy."""
    from rich.table import Table

    table = Table(title="J as played; +belady and clairvoyant order by the future")
    table.add_column("policy")
    for row in rows:
        table.add_column(f"{row['family']}\n{row['pressure']:g}", justify="right")
    for spec in rows[0]["policies"]:
        table.add_row(spec, *(f"{row['policies'][spec]:.3f}" for row in rows))
    return table
