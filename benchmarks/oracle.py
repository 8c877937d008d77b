"""The oracle's brackets: families by pressure, on the laptop's profile and on an H100's. See benchmarks/README.md.

python benchmarks/oracle.py --out benchmarks/oracle.json
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from pikv_agents.commands.options import origin
from pikv_agents.oracle_study import Setting, study
from pikv_agents.tracking.metrics import write_json

LAPTOP = Setting("cpu-gloo", "embedded", token_scale=1, ranks=1, slots=16)
H100 = Setting("h100-nvlink8", "qwen3-30b-a3b", token_scale=8, ranks=2, slots=48)
FAMILIES = ("facts-poisson", "code-bursty")
COMMAND = "python benchmarks/oracle.py --out benchmarks/oracle.json"
PRESSURES = (0.5, 1.0, 2.0, 4.0)


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--horizon-s", type=float, default=600.0)
    given = parser.parse_args()
    began, rows = time.perf_counter(), []
    for family in FAMILIES:
        for setting in (LAPTOP, H100):
            rows += study(setting, [family], PRESSURES, given.horizon_s, note=_say)
            found: dict[str, Any] = {
                "rows": rows,
                "seconds": time.perf_counter() - began,
                "meta": origin() | {"command": COMMAND},
            }
            write_json(given.out, found)  # after every family: a run that is cut short has what it found


if __name__ == "__main__":
    main()
