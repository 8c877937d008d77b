"""The oracle's brackets: families by pressure, on the laptop's suite and on the servers'. See benchmarks/README.md.

python benchmarks/oracle.py --out benchmarks/oracle.json

Rows are written one by one; a second run with the same file goes on where the first was ended.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pikv_agents.commands.options import origin
from pikv_agents.oracle_study import line, study
from pikv_agents.tracking.metrics import write_json
from pikv_env.builtin import resolve_library
from pikv_env.suites import SUITES

ON = ("laptop", "serving")
FAMILIES = ("facts-poisson", "code-bursty")
PRESSURES = (0.5, 1.0, 2.0, 4.0)
COMMAND = "python benchmarks/oracle.py --out benchmarks/oracle.json"


def main() -> None:
    """Measure what the file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--horizon-s", type=float, default=600.0)
    given = parser.parse_args()
    found = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    rows: list[dict[str, Any]] = [row for row in found if "suite" in row]  # older rows: another machine and search
    library = resolve_library()
    for family in FAMILIES:
        for name in ON:
            config = SUITES[name].config(horizon_s=given.horizon_s)
            told = {"suite": name, "horizon_s": given.horizon_s}
            done = {row["pressure"] for row in rows if told.items() <= row.items() and row["family"] == family}

            def keep(row: dict[str, Any], told: dict[str, Any] = told) -> None:
                rows.append(told | row)
                print(line(row), flush=True)
                write_json(given.out, {"rows": rows, "meta": origin() | {"command": COMMAND}})

            todo = [pressure for pressure in PRESSURES if pressure not in done]
            if todo:
                study(config, [family], todo, library, keep=keep)


if __name__ == "__main__":
    main()
