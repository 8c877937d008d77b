"""Draw docs/figures/headroom-*.png from a JSON of `pikv headroom`, and print the tables of docs/headroom.md.

python benchmarks/headroom_figures.py [--json benchmarks/headroom-serving.json] [--name headroom]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from pikv_agents.report import headroom_figure
from pikv_agents.report.headroom_figure import best_rival, counted
from pikv_agents.report.schema import HeadroomRow
from pikv_agents.report.verdict import met

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("capped_exact", "static_global", "static_tuned")
LEVERS = ("retention", "compression", "both", "switching")


def table(rows: Sequence[HeadroomRow]) -> str:
    """One line for each cell, most headroom first: J of references, the best rival, the feasible J, gains by lever."""
    head = ["cell", "exact", "static-global", "static-tuned", "best rival", "feasible", "headroom", *LEVERS]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in sorted(rows, key=lambda row: -row["headroom"]):
        costs, rival = row["policies"], best_rival(row)
        feasible = costs["static_tuned"]["J"] * (1 - row["headroom"])
        name = f"{row['family']} {row['pressure']:g}"
        cells = [f"**{name}**" if counted(row) else name]
        cells += [f"{costs[column]['J']:.3f}" for column in COLUMNS]
        cells += [f"{costs[rival]['J']:.3f} `{_spec(row, rival)}`" if rival else "", f"{feasible:.3f}"]
        cells += [f"{row['headroom']:.1%}"]
        cells += [f"{row['levers'][lever]['gain']:.1%}" if lever in row.get("levers", {}) else "" for lever in LEVERS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def matrix(rows: Sequence[HeadroomRow]) -> str:
    """Headroom by family and pressure; * where the pressure is not reached, – where nothing was played."""
    cells = {(row["family"], row["pressure"]): row for row in rows}
    pressures = sorted({pressure for _, pressure in cells})
    best = {f: max(r["headroom"] for r in rows if r["family"] == f) for f, _ in cells}
    lines = ["| family | " + " | ".join(f"{p:g}" for p in pressures) + " |", "| --- " * (len(pressures) + 1) + "|"]
    for family in sorted(best, key=lambda family: -best[family]):
        told = [_share(cells.get((family, pressure))) for pressure in pressures]
        lines.append(f"| `{family}` | " + " | ".join(told) + " |")
    return "\n".join(lines)


def _share(row: HeadroomRow | None) -> str:
    if row is None:
        return "–"
    share = f"{row['headroom']:.0%}" + ("" if met(row) else "*")
    return f"**{share}**" if counted(row) else share


def _spec(row: HeadroomRow, rival: str) -> str:
    return row["best_heuristic"] if rival == "best_heuristic" else rival  # type: ignore[typeddict-item]


def main() -> None:
    """Draw the scan's matrix of families and pressures, and the study's gains by lever; print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "headroom-serving.json")
    parser.add_argument("--scan", type=Path, default=ROOT / "benchmarks" / "headroom-scan.json")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "figures")
    args = parser.parse_args()
    study, scan = (json.loads(path.read_text(encoding="utf-8"))["rows"] for path in (args.json, args.scan))
    drawn = {"cells": headroom_figure.headroom(scan), "levers": headroom_figure.levers(study)}
    for part, figure in drawn.items():
        figure.savefig(args.folder / f"headroom-{part}.png", dpi=120, metadata={"Software": None})
    print(matrix(scan), table(study), sep="\n\n")


if __name__ == "__main__":
    main()
