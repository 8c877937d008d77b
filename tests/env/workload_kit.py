"""What tests of workloads share: a price of requests, and views of a workload."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pikv_env.workloads import ARRIVALS
from pikv_runtime.requests import RequestList

HORIZON_S = 1800.0


def service_s(prompt_tokens: int, output_tokens: int) -> float:
    return 1e-4 * prompt_tokens + 5e-3 * output_tokens


def fields(workload: RequestList) -> list[tuple[object, ...]]:
    return [
        (
            r.request_id,
            r.arrival_s,
            r.prompt_tokens,
            r.output_tokens,
            r.class_id,
            r.content,
            r.hash_ids.tobytes(),
        )
        for r in workload.requests
    ]


def process(name: str, tmp_path: Path) -> object:
    if name not in ("replay", "trace"):
        return ARRIVALS[name]()
    path = tmp_path / "trace.jsonl"
    rng = np.random.default_rng(0)
    stamps = np.sort(rng.integers(0, 200, 500)) * 3000
    lines = [{"timestamp": int(t), "input_length": 10, "output_length": 5, "hash_ids": [1]} for t in stamps]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return ARRIVALS[name](path)
