"""Prefix hit rate and J of every block rule, by family and pressure, as `benchmarks/block-rules.json`.

    python benchmarks/block_rules.py [--families NAME ...] [--seeds N]

One neutral controller for all: nothing lossy but demotion of live pages to int8 under pressure, in H2O's order. Rules
differ in which cached block goes first. `lru` and `lfu` are the contract's weights; `belady` knows the workload. With
`--families` only these rows are measured anew; the others stay as they are in the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pikv_agents.commands.options import default_threads, open_library, origin
from pikv_agents.rollout import Episode, Suite
from pikv_agents.tracking.metrics import write_json
from pikv_env.config import EnvConfig
from pikv_runtime.contract import Control, GlobalControl, Telemetry
from pikv_runtime.controllers import Controller, make_policy
from pikv_runtime.policy import Policy

NEUTRAL = "static:demote=true,r_pressure=2/h2o"
RULES = ("fifo", "two_queue", "s3fifo", "sieve", "arc", "tlru", "lrb", "belady")
FAMILIES = (
    "replay-conversation",
    "replay-agent-loop",
    "chat-diurnal",
    "chat-swing",
    "agent-code",
    "agent-loops",
    "rag-tenants",
)
PRESSURES = (1.0, 2.0, 4.0)


class Frequent:
    """The neutral controller with blocks in order of uses."""

    name = f"{NEUTRAL} lfu"

    def __init__(self) -> None:
        self.base: Controller = make_policy(NEUTRAL)

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        out = self.base.decide(telemetry, out)
        out.globals[GlobalControl.BLOCK_RECENCY], out.globals[GlobalControl.BLOCK_FREQUENCY] = 0.0, 1.0
        return out


def policies() -> dict[str, str | Callable[[], Policy]]:
    """Who plays, by the name of the rule."""
    return {"lru": NEUTRAL, "lfu": Frequent, **{rule: f"{NEUTRAL}+{rule}" for rule in RULES}}


def measure(suite: Suite, family: str, seeds: int) -> list[dict[str, Any]]:
    """Rows of one family: one for each pressure."""
    episodes = [Episode(family, seed, pressure) for pressure in PRESSURES for seed in range(seeds)]
    played = suite.run_all(policies(), episodes)
    rows = []
    for k, pressure in enumerate(PRESSURES):
        cell = {rule: outcomes[k * seeds : (k + 1) * seeds] for rule, outcomes in played.items()}
        found = {
            rule: {
                "hit_rate": float(np.mean([o.counters["hit_rate"] for o in outcomes])),
                "J": float(np.mean([o.score.J for o in outcomes])),
                "latency": float(np.mean([o.score.latency for o in outcomes])),
                "evicted_blocks": float(np.mean([o.counters["evicted_blocks"] for o in outcomes])),
            }
            for rule, outcomes in cell.items()
        }
        reached = float(np.mean([o.counters["pressure_reached"] for o in cell["lru"]]))
        rows.append({"family": family, "pressure": pressure, "pressure_reached": reached, "rules": found})
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """One line of hit rates and one of J."""
    print(f"{row['family']} at pressure {row['pressure']:g} (reached {row['pressure_reached']:.2f})")
    for key in ("hit_rate", "J"):
        print(f"  {key:<9}" + "  ".join(f"{rule} {one[key]:.3f}" for rule, one in row["rules"].items()), flush=True)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--horizon-s", type=float, default=EnvConfig().horizon_s)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("block-rules.json"))
    given = parser.parse_args()
    suite = Suite(open_library(None), replace(EnvConfig(), horizon_s=given.horizon_s), default_threads())
    old = json.loads(given.json.read_text())["rows"] if given.json.exists() else []
    for family in given.families:
        old = [row for row in old if row["family"] != family] + measure(suite, family, given.seeds)
        meta = origin() | {
            "command": f"python benchmarks/block_rules.py --horizon-s {given.horizon_s:g}",
            "seeds": given.seeds,
            "neutral": NEUTRAL,
        }
        old.sort(key=lambda row: (row["family"], row["pressure"]))
        write_json(given.json, {"rows": old, "meta": meta | {"horizon_s": given.horizon_s}})


if __name__ == "__main__":
    main()
