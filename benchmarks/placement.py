"""Shard maps side by side on the live runtime: bytes between ranks, balance, fidelity.

    python benchmarks/placement.py [--json FILE] [--quick]

Writes benchmarks/placement.json. `page_stripe` is decode context parallelism (DCP) with pages for tokens;
`expert_home` is PiKV's expert sharding. All ranks are played by one process, which counts bytes as several do. Texts
are teacher-forced, so that every row computes the same positions. docs/ranks.md says what it found.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from pikv_agents.commands.options import origin
from pikv_env.study.contents import build_probes
from pikv_env.whole_file import write_whole
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.engine import Engine
from pikv_runtime.models import load_model
from pikv_runtime.models.remote import RemoteReads
from pikv_runtime.requests import RequestList
from pikv_runtime.shard_maps import SHARD_MAPS

ROOT = Path(__file__).resolve().parents[1]
KINDS, PROMPT_TOKENS, OUTPUT_TOKENS, SEED = {"facts": 4, "dictionary": 2, "prose": 1, "code": 1}, 512, 64, 0
BASE = RuntimeConfig(
    codec="bf16", audit_share=1.0, observe_tokens=16, interval_s=0.2, slots=8, max_batch_tokens=512, blocks=1024
)
READS = {
    "exact": (replace(BASE, read="exact"), "static/lru"),
    "centroid 0.25": (replace(BASE, read="sparse", router="centroid"), "static:fan_out=0.25/lru"),
    "gate 0.25": (replace(BASE, read="sparse", router="gate"), "static:fan_out=0.25/lru"),
}


@dataclass
class Seen:
    """Sums over decode rows and layers; maxima and means are over ranks."""

    rows: int = 0
    asked: int = 0
    """(row, layer, remote rank) that were asked."""
    needed: int = 0
    """Of them, those that hold a page of the read set beyond the always-on set."""
    read_most: float = 0.0
    read_mean: float = 0.0
    held_most: list[int] = field(default_factory=list)
    held_mean: list[float] = field(default_factory=list)


SEEN = Seen()


class WatchedReads(RemoteReads):
    """Looks at every question before it is sent."""

    def send_questions(self, asks, queries, reads):  # type: ignore[no-untyped-def]
        pages = np.zeros(self._transport.world)
        layer = next(iter(asks.values())).layer
        for batch in self._plan:
            read = reads[batch.owner]
            SEEN.rows += len(batch.decode)
            for rank in range(len(pages)):
                here = read & (batch.rank_of[layer] == rank)
                pages[rank] += here.sum()
                if rank != batch.owner:
                    SEEN.needed += int((here & ~batch.fixed).any(axis=1).sum())
        SEEN.asked += sum(len(ask.rows) for ask in asks.values())
        SEEN.read_most += pages.max()
        SEEN.read_mean += pages.mean()
        return super().send_questions(asks, queries, reads)


class Watched(Engine):
    """Weighs the stores while everybody decodes."""

    def _forward(self) -> Any:
        result = super()._forward()
        if all(segment.decode for segment in self._segments()):
            held = [sum(by_codec.values()) for by_codec in self.runner.nbytes().values()]
            SEEN.held_most.append(max(held))
            SEEN.held_mean.append(sum(held) / len(held))
        return result


def measure(model: Any, workload: RequestList, ranks: int, shards: str, read: str) -> dict[str, Any]:
    """Serve the workload once."""
    global SEEN
    SEEN = Seen()
    config, policy = READS[read]
    engine = Watched(model, replace(config, shard_map=shards), policy, ranks)
    with patch("pikv_runtime.models.step.RemoteReads", WatchedReads):
        served = list(engine.run(workload))
    tokens = sum(len(done.output_ids) for done in served)
    sent = engine.transport.sent_bytes
    return {
        "ranks": ranks,
        "shard_map": shards,
        "read": read,
        "fidelity": round(1.0 - engine.score().loss, 5),
        "decode_query_bytes_per_token": round(sent["decode_query"] / tokens),
        "page_move_bytes_per_token": round(sent["page_move"] / tokens),
        "ranks_asked": round(SEEN.asked / max(1, SEEN.rows), 3),
        "ranks_needed": round(SEEN.needed / max(1, SEEN.rows), 3),
        "kv_imbalance": round(sum(SEEN.held_most) / sum(SEEN.held_mean), 3),
        "read_imbalance": round(SEEN.read_most / max(1e-9, SEEN.read_mean), 3),
    }


def cases(quick: bool) -> list[tuple[int, str, str]]:
    """(ranks, map, read) of every row."""
    if quick:
        return [(2, shards, "exact") for shards in ("expert_home", "page_stripe")]
    every = [(4, shards, read) for read in READS for shards in SHARD_MAPS]
    pair = ("expert_home", "page_stripe")
    return every + [(ranks, shards, read) for ranks in (2, 8) for read in list(READS)[:2] for shards in pair]


def main() -> None:
    parser = argparse.ArgumentParser(description="Shard maps side by side on the live runtime.")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "placement.json")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("embedded")[0]
    prompt, output = (160, 16) if options.quick else (PROMPT_TOKENS, OUTPUT_TOKENS)
    probes = build_probes({"facts": 2} if options.quick else KINDS, prompt, output, SEED)
    workload = RequestList("placement", 0.0, tuple(probe.request for probe in probes))
    rows = []
    for ranks, shards, read in cases(options.quick):
        spec = "shard_eplb:every=1,margin=5" if shards == "shard_eplb" else shards
        rows.append(measure(model, workload, ranks, spec, read))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    kinds = {"kinds": KINDS, "prompt_tokens": prompt, "output_tokens": output, "seed": SEED}
    result = {"rows": rows, "workload": kinds, "meta": origin() | {"command": "python benchmarks/placement.py"}}
    write_whole(options.json, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    main()
