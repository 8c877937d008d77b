"""The study that PiKV's readers ask for: writes benchmarks/study.json and docs/figures/study-*.png.

    python benchmarks/study.py [--parts NAME ...] [--json FILE] [--quick]
    python benchmarks/study_figures.py

Parts: effects controls informed pressure placement lookup lineage. Those that are left out keep what the file holds.
Each takes a few minutes of one core; docs/study.md says what they found.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pikv_agents.commands.options import origin
from pikv_env.whole_file import write_whole
from pikv_runtime.ledger.state import Price

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"facts": 8, "dictionary": 6, "dialogue": 2, "needle": 2, "prose": 1, "code": 1}
PROMPT_TOKENS, OUTPUT_TOKENS, SEED = 640, 128, 0


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def effects(quick: bool) -> Iterator[dict[str, Any]]:
    from pikv_env.study.settings import settings

    yield from served(settings()[:: 8 if quick else 1], quick)


def controls(quick: bool) -> Iterator[dict[str, Any]]:
    from pikv_env.study.settings import controls as without_knowledge

    yield from served(without_knowledge()[: 3 if quick else None], quick)


def informed(quick: bool) -> Iterator[dict[str, Any]]:
    from pikv_env.study.settings import informed as after_a_while

    yield from served(after_a_while()[: 2 if quick else None], quick)


def served(rows: Sequence[Any], quick: bool) -> Iterator[dict[str, Any]]:
    from pikv_env.study.contents import build_probes
    from pikv_env.study.effects import study_effects
    from pikv_runtime.models import load_model

    kinds = {"facts": 2, "needle": 1, "prose": 1} if quick else KINDS
    prompt, output = (256, 48) if quick else (PROMPT_TOKENS, OUTPUT_TOKENS)
    probes = build_probes(kinds, prompt, output, SEED)
    found: list[dict[str, Any]] = []
    for row in study_effects(load_model("embedded")[0], probes, rows):
        found.append(row)
        note(f"{row['setting']}: F {row['fidelity']:.3f}, KL {row['kl']:.3f}, recall {row['recall']:.3f}")
        yield {"kinds": kinds, "prompt_tokens": prompt, "output_tokens": output, "seed": SEED, "rows": found}


def placement(quick: bool) -> Iterator[dict[str, Any]]:
    from pikv_env.builtin import resolve_library
    from pikv_env.study.placement import gate_knowledge, routed_ranks
    from pikv_env.study.placement import placement as placed
    from pikv_runtime.profiles import load_profile

    library = resolve_library(None)
    query_bytes = float(load_profile("cpu-gloo").prices()[Price.QUERY_BYTES])
    yield {
        "coverage": gate_knowledge(library), "placement": placed(library, query_bytes),
        "routed": routed_ranks(library), "query_bytes": query_bytes,
    }  # fmt: skip


def pressure(quick: bool) -> Iterator[dict[str, Any]]:
    """Conflicts in the trace environment, by ranker and pressure: a quarter of an hour of arrivals."""
    from pikv_agents.rollout import Job, run_jobs
    from pikv_env.batch import TraceBatch
    from pikv_env.builtin import resolve_library
    from pikv_env.config import EnvConfig
    from pikv_env.pool import WorkloadPool
    from pikv_env.study.settings import RANKERS, under_pressure

    families = ("facts-poisson", "prose-diurnal")
    config = EnvConfig(families=families, workloads=len(families), load=(0.5, 0.5), horizon_s=120 if quick else 900)
    library = resolve_library(None)
    pool = WorkloadPool(library, config, SEED)
    named = [(r, p, w) for r in RANKERS for p in (0.5, 1.0, 2.0, 4.0) for w in range(len(families))]
    batch = TraceBatch(library, config, 16, SEED, pool)
    outcomes = run_jobs(batch, [Job(under_pressure(r), w, p) for r, p, w in named], (0.25, 10.0))
    rows = []
    for (ranker, level, w), outcome in zip(named, outcomes, strict=True):
        count = outcome.counters
        rows.append({
            "ranker": ranker, "pressure": level, "pressure_reached": count["pressure_reached"], "family": families[w],
            "evicted_pages": count["evicted_pages"], "conflicts": count["conflicts"],
            "conflicts_per_evicted_page": count["conflicts"] / max(1.0, count["evicted_pages"]), **outcome.costs(),
        })  # fmt: skip
        note(str(rows[-1]))
    yield {"rows": rows}


def lookup(quick: bool) -> Iterator[dict[str, Any]]:
    from pikv_env.study.lookup import lookup as looked_up
    from pikv_env.study.lookup import random_model
    from pikv_runtime.models import load_model

    found: dict[str, Any] = {}
    for name, make, size in (
        ("embedded", lambda: load_model("embedded")[0], (8, 1024, 160)),
        ("random, 8 layers of 512", random_model, (4, 768, 110)),
    ):
        model = make()
        requests, prompt, output = (2, 128, 70) if quick else size
        for ranks in (1, 2):
            row = looked_up(model, ranks, requests=requests, prompt_tokens=prompt, output_tokens=output)
            found[f"{name}, {ranks} rank{'s' if ranks > 1 else ''}"] = row
            note(f"{name} on {ranks}: " + ", ".join(f"{r['fan_out']:g}: {r['step_ms']:.0f} ms" for r in row["rows"]))
            yield {"runs": found}


def lineage(quick: bool) -> Iterator[dict[str, Any]]:
    from pikv_env.study.contents import build_probes
    from pikv_env.study.lineage import study_lineage
    from pikv_runtime.models import load_model

    kinds = {"facts": 2, "prose": 1} if quick else {"facts": 8, "dictionary": 8, "dialogue": 8, "prose": 4, "code": 4}
    prompt, output = (256, 128) if quick else (PROMPT_TOKENS, 192)
    rows = []
    for row in study_lineage(load_model("embedded")[0], build_probes(kinds, prompt, output, SEED)):
        rows.append(row)
        note("{setting}: K {k_error:.4f}, V {v_error:.4f}, KL {kl:.5f}".format(**row))
        yield {"kinds": kinds, "prompt_tokens": prompt, "output_tokens": output, "seed": SEED, "rows": rows}


PARTS: dict[str, Callable[[bool], Iterator[Any]]] = {
    "effects": effects, "controls": controls, "informed": informed, "pressure": pressure, "placement": placement,
    "lookup": lookup, "lineage": lineage,
}  # fmt: skip


def proxies(study: dict[str, Any]) -> dict[str, Any]:
    """How good a proxy F is, from the settings that were served; computed whenever there are new ones."""
    from pikv_env.study.effects import proxy

    rows = study["effects"]["result"]["rows"] + study.get("controls", {"result": {"rows": []}})["result"]["rows"][1:]
    return proxy(rows)


def run(part: str, quick: bool, path: Path) -> None:
    """Run one part; what it has found so far is kept whenever it has found more."""
    started = time.perf_counter()
    for found in PARTS[part](quick):
        # Read now, not before: parts may run side by side.
        result = json.loads(path.read_text()) if path.exists() else {}
        result[part] = {
            "result": found,
            "seconds": round(time.perf_counter() - started, 1),
            "meta": origin() | {"command": f"python benchmarks/study.py --parts {part}"},
        }
        if len(result.get("effects", {"result": {"rows": []}})["result"]["rows"]) > 2:
            result["proxy"] = proxies(result)
        write_whole(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


def gather(files: Sequence[Path], path: Path) -> None:
    """Put parts that were measured into files of their own into one."""
    result = json.loads(path.read_text()) if path.exists() else {}
    for file in files:
        result.update({part: value for part, value in json.loads(file.read_text()).items() if part in PARTS})
    if "effects" in result:
        result["proxy"] = proxies(result)
    write_whole(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="The study that PiKV's readers ask for.")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "study.json")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--gather", nargs="+", type=Path, default=(), help="only merge such files into --json")
    options = parser.parse_args()
    if options.gather:
        gather(options.gather, options.json)
        return
    torch.set_num_threads(1)
    for part in options.parts:
        run(part, options.quick, options.json)


if __name__ == "__main__":
    main()
