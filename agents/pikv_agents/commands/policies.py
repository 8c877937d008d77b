"""`pikv policies`: the bundles that are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Policies(Command):
    """List policy bundles, show one's card, or verify one: hashes, contract, golden pairs, both runners."""

    action: Annotated[Literal["list", "show", "verify"], tyro.conf.Positional] = "list"
    """What to do."""
    bundle: Annotated[str, tyro.conf.Positional] = ""
    """Path or name of a bundle; verify without one verifies all."""

    def run(self) -> dict[str, Any]:
        """Print and return what was found; a refused bundle is an error that says why."""
        from rich.markdown import Markdown

        from pikv_agents.report import tables
        from pikv_runtime.policy import load_bundle, shelf

        console = tables.console()
        if self.action == "show":
            if not self.bundle:
                raise ValueError("show needs a bundle: pikv policies show NAME")
            found = load_bundle(shelf.find_bundle(self.bundle))
            console.print(Markdown(found.card))
            return {"bundle": str(found.path), "card": found.card, "evaluation": found.evaluation}
        paths = [shelf.find_bundle(self.bundle)] if self.bundle else shelf.find_bundles()
        rows = [shelf.describe(path) for path in paths] if self.action == "verify" else [shelf.line(p) for p in paths]
        console.print(_table(rows))
        if not rows:
            console.print("no bundles here: make one with pikv train and pikv export")
        return {"policies": rows}


def _table(rows: list[dict[str, Any]]) -> Any:
    from pikv_agents.report.tables import plain_table

    table = plain_table("Policies", ("bundle", "view", "families"), ("golden error", "native µs", "numpy µs"))
    table.add_column("state", overflow="fold")  # reasons are long, and must not push the names out
    for row in rows:
        times = row.get("decision_us", {})
        error = f"{row['golden_error']:.1e}" if "golden_error" in row else "–"
        speeds = [f"{times[name]:.1f}" if name in times else "–" for name in ("native", "numpy")]
        families = ", ".join(row.get("provenance", {}).get("families", []))
        state = "refused: " + row["refused"] if "refused" in row else "verified" if times else "loads"
        table.add_row(row["bundle"], row.get("view", "–"), families, error, *speeds, state)
    return table
