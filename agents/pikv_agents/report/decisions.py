"""Terminal tables of decisions: how two policies' controls differ, and a canary beside its incumbents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pikv_agents.report.tables import number, plain_table


def difference(report: Mapping[str, Any], title: str, first: str, second: str) -> Table | str:
    """A row per control that ever differs, in its own unit, means over decisions (and groups); a line if none does."""
    caption = (
        f"{report['decisions']} decisions: {report['identical']} identical to the bit, {report['different']} differ by "
        "more than rounding"
    )
    if not report["controls"]:
        return f"{title}: {caption}"
    table = plain_table(title, ("control", "unit"), (first, second, "mean\ndifference", "differs"), caption)
    for row in report["controls"]:
        table.add_row(
            row["control"], row["unit"], number(row["first"]), number(row["second"]), number(row["mean_difference"]),
            f"{100 * row['differs']:.0f} %",
        )  # fmt: skip
    return table


def canary(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> Table:
    """Canary and incumbents side by side."""
    ours = next(row for row in rows if row["canary"])
    others = [row for row in rows if not row["canary"]]
    caption = (
        f"canary {ours['policy']}: {ours['served']} of {ours['requests']} requests served; {len(others)} incumbent(s) "
        f"{others[0]['policy']}: {sum(r['served'] for r in others)} of {sum(r['requests'] for r in others)}. The range "
        "is that of the incumbents: what chance alone does"
    )
    table = plain_table("Canary", ("metric",), ("canary", "incumbents", "range", "the canary is"), caption)
    for row in metrics:
        span = f"{number(row['low'], 4)} to {number(row['high'], 4)}"
        table.add_row(row["metric"], number(row["canary"], 4), number(row["incumbent"], 4), span, row["range"])
    return table
