"""What `PiKV/Trace-v0` is like on GPU profiles: iterations, room for pressure, latency without pressure.

    python benchmarks/priced_environments.py [--json FILE]

One workload of each training family with thirty minutes of arrivals, for combinations of profile, geometry, ranks and
token_scale. The policy is neutral; pressure 0.05 stands for no cap.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pikv_agents.commands.options import origin
from pikv_env.batch import TraceBatch
from pikv_env.builtin import resolve_library
from pikv_env.config import EnvConfig
from pikv_env.episode import costs
from pikv_runtime.ledger import Tally

ROOT = Path(__file__).resolve().parents[1]
NODE = {"slots": 64, "max_batch_tokens": 512}
COMBINATIONS = (
    ("cpu-gloo", "embedded", 2, 1, {}),
    ("h100-nvlink8", "qwen3-30b-a3b", 2, 8, {}),
    ("h100-nvlink8", "qwen3-30b-a3b", 2, 32, {}),
    ("h100-nvlink8", "qwen3-30b-a3b", 8, 32, {}),
    ("h100-nvlink8", "qwen3-30b-a3b", 8, 32, NODE),
    ("a100-nvlink8", "olmoe-1b-7b", 2, 8, {}),
    ("h200-nvlink8", "gpt-oss-120b", 2, 8, {}),
    ("b200-nvlink8", "deepseek-v3", 8, 32, NODE),
    ("l40s-pcie4", "olmoe-1b-7b", 2, 8, {}),
)


def measure(profile: str, geometry: str, ranks: int, scale: int, runtime: dict) -> dict:
    base = EnvConfig()
    config = replace(
        base, profile=profile, geometry=geometry, ranks=ranks, token_scale=scale, workloads=4,
        runtime=replace(base.runtime, **runtime),
    )  # fmt: skip
    lanes = 8  # each workload without pressure, and at pressure 2
    started = time.perf_counter()
    batch = TraceBatch(resolve_library(), config, lanes)
    built_s = time.perf_counter() - started
    for i in range(lanes):
        batch.reset_lane(i, workload=i % 4, pressure=0.05 if i < 4 else 2.0)
    neutral, steps, started = batch._neutral, 0, time.perf_counter()
    while not batch.done.all():
        batch.control_groups[:], batch.control_globals[:] = neutral.groups, neutral.globals
        steps += int((~batch.done).sum())
        batch.step()
    seconds = time.perf_counter() - started
    return {
        "profile": profile, "geometry": geometry, "ranks": ranks, "token_scale": scale, **runtime,
        "built_s": round(built_s, 1), "steps_per_s": round(steps / seconds), **summary(batch, scale),
    }  # fmt: skip


def summary(batch: TraceBatch, scale: int) -> dict:
    pools, calm = batch.pool.prepared, [costs(batch, i) for i in range(4)]
    iterations = batch.state.tally[:4, Tally.ITERATIONS] / batch.elapsed[:4]
    ranks = batch.config.ranks
    first = [c.classes[0] for c in calm]  # the interactive class; times of calm lanes
    return {
        "iterations_per_interval": [round(float(n), 1) for n in iterations],
        "requests": [len(p.workload.requests) for p in pools],
        "busy_share": [round(p.reference.busy_share, 2) for p in pools],
        "greatest_pressure": [round(p.working_set_bytes / ranks / p.floor_bytes, 2) for p in pools],
        "ttft_s": [round(c.ttft_s_mean, 2) for c in first],
        "tpot_ms": [round(c.tpot_s_mean * 1e3 / scale, 2) for c in first],
        "within_slo": [round(c.slo_share, 2) for c in first],
        "J_calm": [round(batch.score(i).J, 2) for i in range(4)],
        "J_pressure_2": [round(batch.score(i).J, 2) for i in range(4, 8)],
        "finite": bool(all(np.isfinite(batch.score(i).J) for i in range(8))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "priced-environments.json")
    args = parser.parse_args()
    rows = []
    for combination in COMBINATIONS:
        rows.append(measure(*combination))
        print(json.dumps(rows[-1]), flush=True)
    meta = origin() | {"command": "python benchmarks/priced_environments.py"}
    body = ",\n  ".join(json.dumps(row) for row in rows)
    args.json.write_text(f'{json.dumps({"meta": meta}, indent=1)[:-2]},\n "rows": [\n  {body}\n ]\n}}\n')


if __name__ == "__main__":
    main()
