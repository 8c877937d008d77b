"""Greatest pressure of every family in every suite: how far a cap can shrink before the longest request fills it.

    python benchmarks/suite_reach.py [--suites laptop serving ...] [--seeds 2] [--json FILE]

The workloads are those that `pikv evaluate` plays. Suites of the file that are not asked for are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from pikv_agents.commands.options import default_threads, origin
from pikv_agents.rollout import Suite
from pikv_env.builtin import resolve_library
from pikv_env.suites import SUITES, SuiteSpec, reached

ROOT = Path(__file__).resolve().parents[1]


def measure(spec: SuiteSpec, seeds: int) -> list[dict]:
    suite, rows = Suite(resolve_library(), spec.config(), default_threads()), []
    for split, families in spec.families.items():
        for family in families:
            begin, found, requests, live = time.perf_counter(), [], [], []
            for seed in range(seeds):
                prepared = suite.pool(family, seed).prepared[0]
                found.append(prepared.working_set_bytes / prepared.floor_bytes / spec.ranks)
                requests.append(len(prepared.workload.requests))
                live.append(prepared.reference.live_bytes_mean / prepared.floor_bytes)
            most = float(np.mean(found))
            rows.append({
                "family": family, "split": split, "greatest_pressure": round(most, 2),
                "not_reached": [p for p in spec.pressures if not reached(p, min(p, most))],
                "requests": requests, "live_over_longest": round(float(np.mean(live)), 1),
            })  # fmt: skip
            print(f"{spec.id:14} {json.dumps(rows[-1])} {time.perf_counter() - begin:.0f} s", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suites", nargs="*", default=SUITES.names())
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "suite-reach.json")
    args = parser.parse_args()
    known = json.loads(args.json.read_text())["suites"] if args.json.exists() else {}
    for name in args.suites:
        known[name] = {"seeds": args.seeds, "rows": measure(SUITES[name], args.seeds)}
        meta = origin() | {"command": "python benchmarks/suite_reach.py"}
        told = ",\n ".join(f'"{k}": {{"seeds": {v["seeds"]}, "rows": [\n  ' + ",\n  ".join(map(json.dumps, v["rows"]))
                           + "\n ]}" for k, v in known.items())  # fmt: skip
        args.json.write_text(f'{{"meta": {json.dumps(meta)},\n"suites": {{\n {told}\n}}}}\n')


if __name__ == "__main__":
    main()
