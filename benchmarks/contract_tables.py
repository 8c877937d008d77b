"""Print the tables of docs/contract.md from contract-evidence.json: `python benchmarks/contract_tables.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

VALUES = (-1.0, -0.33, 0.33, 1.0)
"""Where every action is put."""


def controls(cells: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """What every action is worth over the cells."""
    rows = []
    for name in names:
        # (cells, 1 + values): the base's value counts as one
        J = np.array([[c["J"]["base"], *(c["J"][f"{name}={v:g}"] for v in VALUES)] for c in cells])
        relative = J / J[:, :1] - 1
        once = relative[:, np.argmin(relative.mean(axis=0))]
        gains = -relative.min(axis=1)
        best = int(np.argmax(gains))
        rows.append(
            {
                "control": name,
                "reach": float(np.abs(relative).max()),
                "gain_mean": float(gains.mean()),
                "gain_best": float(gains[best]),
                "best_cell": "{family} at {pressure:g}, {kind}".format(**cells[best]),
                "adaptive": float((once + gains).mean()),
            }
        )
    return rows


def control_table(result: dict[str, Any]) -> list[str]:
    """Rows of docs/contract.md's table of controls."""
    both = {row["control"]: row for row in result["controls"]}
    by_kind = {
        kind: controls([c for c in result["cells"] if c["kind"] == kind], list(both)) for kind in ("best", "ordered")
    }
    rows = []
    for best, ordered in zip(*by_kind.values(), strict=True):
        cells = [best["reach"], ordered["reach"], best["gain_best"], ordered["gain_best"]]
        cells.append(both[best["control"]]["adaptive"])
        rows.append(f"| `{best['control']}` | " + " | ".join(f"{100 * max(0.0, x):.1f} %" for x in cells) + " |")
    return rows


def feature_table(result: dict[str, Any]) -> list[str]:
    """Rows of docs/contract.md's table of features."""
    return [
        f"| `{row['feature']}` | {row['low']:.2f} | {row['high']:.2f} | {row['explained']:.3f} | {row['worth']:.3f} |"
        for row in result["features"]
        if row["explained"] is not None
    ]


if __name__ == "__main__":
    evidence = json.loads(Path(__file__).with_name("contract-evidence.json").read_text())
    for table in (control_table, feature_table):
        print("\n".join(table(evidence)) + "\n")
