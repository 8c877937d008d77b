"""`pikv oracle`: a bracket around the best that clairvoyant decisions could reach."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Oracle(Command):
    """Bounds on the least J, by family and pressure: a relaxation below, a feasible schedule above.

    Admissions and the clock are those of U; docs/oracle.md says what that means. `free` is a bound for any admission.
    """

    library: Path | None = None
    """Trace library; by default the built-in one."""
    families: tuple[str, ...] = ("facts-poisson", "code-bursty")
    """Workload families."""
    pressure: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Working set over the cap."""
    seed: int = 0
    """Workload of every family."""
    horizon_s: float = 600.0
    """Arrival horizon, model seconds."""
    profile: str = "cpu-gloo"
    """Machine whose prices count."""
    geometry: str = "embedded"
    """Model that is priced."""
    token_scale: int = 1
    """Tokens of that model that one recorded token stands for."""
    ranks: int = 1
    """Ranks that pages are sharded over."""
    slots: int = 16
    """Most requests running at a time."""
    quick: bool = False
    """Search less: wider brackets, in a few seconds each."""

    def run(self) -> dict[str, Any]:
        """Print the table, return its rows."""
        import sys

        from rich.table import Table

        from pikv_agents.commands.options import open_library, origin, playable
        from pikv_agents.oracle_study import Setting, study
        from pikv_agents.report import tables
        from pikv_env.oracle import Effort

        if not self.pressure or min(self.pressure) <= 0:
            raise ValueError(f"pressure={self.pressure}: one or more numbers, all positive")
        library = open_library(self.library)
        families = playable(self.families, library)
        setting = Setting(self.profile, self.geometry, self.token_scale, self.ranks, self.slots)
        effort = Effort(rounds=(10, 10), sweeps=1) if self.quick else None

        def note(text: str) -> None:
            print(text, file=sys.stderr)

        rows = study(
            setting, families, self.pressure, self.horizon_s, seed=self.seed, library=library, effort=effort, note=note
        )
        table = Table(title="bounds on J, admissions and clock of U")
        for name in ("family", "pressure", "lower", "upper", "width", "played", "policy", "free"):
            table.add_column(name, justify="left" if name in ("family", "policy") else "right")
        for row in rows:
            table.add_row(
                row["family"], f"{row['pressure']:g}", f"{row['lower']:.3f}", f"{row['upper']:.3f}",
                f"{row['width']:.1%}", f"{row['played']:.3f}", row["played_policy"], f"{row['free_bound']:.3f}",
            )  # fmt: skip
        tables.console().print(table)
        return {"rows": rows, "meta": origin()}
