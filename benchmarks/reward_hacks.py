"""Play every reward hack against the best fixed setting: `python benchmarks/reward_hacks.py --json FILE`.

Recorded traces of the built-in library, five families at two pressures; a few minutes of one core.
`docs/reward-hacks.md` shows the numbers; a test holds the two together.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from pikv_agents.exporting import commit, machine
from pikv_agents.hack_study import LAMBDAS, sampling, study
from pikv_env.batch import TraceBatch
from pikv_env.builtin import make_config, resolve_library
from pikv_env.hacks import HACKS

FAMILIES = ("facts-poisson", "code-bursty", "copy-onoff", "needle-onoff", "dialogue-sessions")
PRESSURES = (1.0, 4.0)
LANES = 48
_DEMOTE = "static:demote=true,r_pressure=4"
# Their victims do not depend on what was observed, so observing more often changes nothing but the measure.
UNHEEDING = (
    "capped_exact/streaming_llm",
    f"{_DEMOTE}/streaming_llm",
    f"{_DEMOTE},evict=0.5/streaming_llm",
    f"{_DEMOTE},evict=0.5,window=16/streaming_llm",
    f"{_DEMOTE},fan_out=0.25,window=16/streaming_llm",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--horizon", type=float, default=300.0, help="seconds of arrivals")
    given = parser.parse_args()
    config = make_config(families=FAMILIES, workloads=len(FAMILIES), horizon_s=given.horizon, pressure=1.0)
    batch = TraceBatch(resolve_library(), config, LANES, seed=0)
    played = study(batch, PRESSURES)
    fixed = {spec: [outcome.score.J for outcome in row] for spec, row in played.fixed.items()}
    document = {
        "rows": played.rows(),
        "cells": [
            {"family": FAMILIES[w], "pressure": p, "reference": best, "J": fixed[best][c]}
            for c, ((w, p), best) in enumerate(zip(played.cells, played.best, strict=True))
        ],
        "fixed": fixed,
        "sampling": sampling(batch.pool.library, config, PRESSURES, UNHEEDING),
        "meta": {
            "command": f"python benchmarks/reward_hacks.py --json {given.json}",
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "profile": config.profile,
            "horizon_s": given.horizon,
            "lambdas": LAMBDAS,
        },
    }
    given.json.write_text(json.dumps(document, indent=1) + "\n")
    for row in document["rows"]:
        entry = HACKS[row["name"]]
        numbers = " | ".join(f"{row[key]:.2f}" for key in ("ratio", "least", "latency", "memory", "fidelity"))
        print(f"| `{entry.name}` | {entry.tries} | {entry.answer} | {numbers} |")


if __name__ == "__main__":
    main()
