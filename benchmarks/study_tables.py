"""Print the tables of docs/study.md from benchmarks/study.json: `python benchmarks/study_tables.py [--json FILE]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHOWN = (
    "exact", "bf16", "ratio 2", "ratio 4", "centroid 0.5", "centroid 0.25", "centroid 0.1", "centroid 0.05",
    "gate 0.5", "gate 0.25", "gate 0.1", "random 0.5", "random 0.25", "random 0.1", "recent 0.5", "recent 0.25",
    "recent 0.1", "lru keeps 0.5", "lru keeps 0.25", "h2o keeps 0.5", "h2o keeps 0.25", "streaming_llm keeps 0.5",
    "streaming_llm keeps 0.25",
)  # fmt: skip


def line(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def effects(study: dict) -> list[str]:
    rows = {r["setting"]: r for p in ("effects", "controls") if p in study for r in study[p]["result"]["rows"]}
    return [
        line(
            name.replace("ratio", "asked ratio").replace("_", "\\_"), f"{r['hit']:.2f}", f"{r['fidelity']:.3f}",
            f"{r['kl']:.3f}", f"{r['accuracy']:.3f}", f"{r['recall']:.2f}", f"{r['tpot_model_ms']:.0f}",
            f"{r['resident_bytes_mean'] / 1e6:.1f}",
        )
        for name in SHOWN
        if (r := rows.get(name))
    ]  # fmt: skip


def informed(study: dict) -> list[str]:
    return [
        line(
            r["lever"].removeprefix("informed/").replace("none", "nothing evicted").replace("_", "\\_"),
            f"{r['hit']:.2f}", f"{r['fidelity']:.3f}", f"{r['kl']:.3f}", f"{r['recall']:.2f}",
            f"{100 * r['asked_again']['1']:.0f} %", f"{100 * r['asked_again']['10']:.0f} %",
        )
        for r in study["informed"]["result"]["rows"][1:]
    ]  # fmt: skip


def coverage(study: dict) -> list[str]:
    rows = study["placement"]["result"]["coverage"]
    return [
        line(
            f"{r['budget']:.0%}", r["layer"], *(f"{r[k]:.2f}" for k in ("random", "recent", "gate")),
            "{:.2f} to {:.2f}".format(*r["gate_over_random_ci95"]), f"{r['centroid']:.2f}", f"{r['best']:.2f}",
        )
        for r in sorted(rows, key=lambda r: (r["budget"], r["layer"])) if r["budget"] < 0.5
    ]  # fmt: skip


def lineage(study: dict) -> list[str]:
    return [
        line(
            r["setting"], f"{r['k_error']:.4f}", f"{r['v_error']:.4f}", f"{1e3 * r['kl']:.2f}",
            f"{100 * (1 - r['agreement']):.2f} %",
        )
        for r in study["lineage"]["result"]["rows"]
    ]  # fmt: skip


def placement(study: dict) -> list[str]:
    return [
        line(
            r["ranks"], "by expert" if r["placement"] == "expert" else "striped", f"{r['exact']['balance_batch']:.2f}",
            f"{r['exact']['remote_ranks']:.1f} of {r['ranks'] - 1}", f"{r['exact']['wire_bytes_per_token'] / 1024:.1f}",
            f"{r['0.25']['balance_batch']:.2f}, {r['0.25']['wire_bytes_per_token'] / 1024:.1f}",
        )
        for r in study["placement"]["result"]["placement"]
    ]  # fmt: skip


def lookup(study: dict) -> list[str]:
    rows = []
    for name, run in study["lookup"]["result"]["runs"].items():
        for r in run["rows"]:
            messages = f"{r['messages_cpu_ms']:.1f}" if run["ranks"] > 1 else "–"
            rows.append(line(
                name, f"{r['fan_out']:g}", f"{r['pages_read']:.0f}", f"{r['step_ms']:.1f}", f"{r['score_ms']:.1f}",
                f"{r['choose_ms']:.1f}", f"{r['read_ms']:.1f}", messages,
            ))  # fmt: skip
    return rows


def pressure(study: dict) -> list[str]:
    rows = study["pressure"]["result"]["rows"]
    found = []
    for ranker in dict.fromkeys(r["ranker"] for r in rows):
        cells = []
        for level in sorted({r["pressure"] for r in rows}):
            mine = [r for r in rows if r["ranker"] == ranker and r["pressure"] == level]
            evicted = sum(r["evicted_pages"] for r in mine)
            again = sum(r["conflicts"] for r in mine) / max(1.0, evicted)
            cells.append(f"{evicted:,.0f}: {again:.2f}" if evicted else "none")
        found.append(line(ranker.replace("_", "\\_"), *cells))
    return found


def proxy(study: dict) -> list[str]:
    names = {"kl": "divergence", "agreement": "agreement with the exact cache's first choice", "accuracy": "accuracy on"
             " the text", "recall": "recall of far answers"}  # fmt: skip
    return [line(t, *(f"{study['proxy'][k][m]:.2f}" for m in ("spearman", "kendall"))) for k, t in names.items()]


TABLES = {
    "effects": effects, "informed": informed, "placement": coverage, "placement ": placement, "lookup": lookup,
    "pressure": pressure, "proxy": proxy, "lineage": lineage,
}  # fmt: skip
"""By the part that a table needs."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "study.json")
    study = json.loads(parser.parse_args().json.read_text())
    for name, table in TABLES.items():
        if name.strip() in study:
            print(f"{name}\n\n" + "\n".join(table(study)) + "\n")
