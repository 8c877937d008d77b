"""Draw docs/figures/study-*.png from benchmarks/study.json: `python benchmarks/study_figures.py [--json FILE]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pikv_agents.report.style import INK, MUTED, styled, title

ROOT = Path(__file__).resolve().parents[1]
LEVERS = {
    "ratio": ("compression", "#009E73", "s"),
    "fan_out/centroid": ("sparse, centroid", "#0072B2", "o"),
    "fan_out/gate": ("sparse, gate", "#D55E00", "X"),
    "fan_out/random": ("sparse, random", "#8a949e", "h"),
    "fan_out/recent": ("sparse, latest", "#444c55", "*"),
    "evict/lru": ("evict, lru", "#E69F00", "^"),
    "evict/lfu": ("evict, lfu", "#B8860B", "v"),
    "evict/h2o": ("evict, h2o", "#CC79A7", "D"),
    "evict/streaming_llm": ("evict, streaming_llm", "#56B4E9", "P"),
}
CHOICES = {"random": "#c5ccd3", "recent": "#8a949e", "gate": "#D55E00", "centroid": "#0072B2", "best": "#222222"}
TIME_PARTS = {
    "other_ms": ("the rest of the model", "#dfe4e8"),
    "read_ms": ("reading pages", "#0072B2"),
    "lookup_ms": ("look-up: score, choose", "#E69F00"),
    "messages_cpu_ms": ("messages, CPU", "#B0457F"),
}


def _scatter(axes: Any, rows: list[dict], x: Callable[[dict], float], y: Callable[[dict], float]) -> None:
    for lever, (name, colour, marker) in LEVERS.items():
        mine = [row for row in rows if row["lever"] == lever]
        if not mine:
            continue
        axes.plot([x(r) for r in mine], [y(r) for r in mine], color=colour, lw=0.9, alpha=0.5)
        axes.scatter(
            [x(r) for r in mine], [y(r) for r in mine], color=colour, marker=marker, s=38, label=name, zorder=3
        )


@styled
def fidelity(study: dict) -> Any:
    rows = study["effects"]["result"]["rows"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.7))
    _scatter(left, rows, lambda r: 1 - r["fidelity"], lambda r: max(r["kl"], 1e-4))
    left.set(xlabel="1 − F, the proxy", ylabel="KL of next-token distributions, nats", yscale="log")
    title(left, "Loss against divergence", "each point one setting; a line joins one lever")
    _scatter(right, rows, lambda r: 1 - r["fidelity"], lambda r: r["recall"])
    exact = next(r for r in rows if r["setting"] == "exact")
    right.axhline(exact["recall"], color=MUTED, lw=0.9, ls=":")
    right.set(xlabel="1 − F, the proxy", ylabel="recall of far answers", ylim=(0, 1.03))
    title(right, "Loss against recall", f"{exact['answers']} answers; dotted: the exact cache")
    figure.legend(*right.get_legend_handles_labels(), fontsize=8.5, loc="lower center", ncols=5)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    return figure


@styled
def hits(study: dict) -> Any:
    rows = study["effects"]["result"]["rows"]
    evicting = [r for r in rows if r["lever"].startswith("evict/")]
    base = next(r for r in rows if r["setting"] == "centroid 0.25")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.9))
    _scatter(left, evicting, lambda r: r["hit"], lambda r: r["recall"])
    left.scatter([base["hit"]], [base["recall"]], color=INK, marker="*", s=90, zorder=4, label="nothing evicted")
    left.set(xlabel="hit: wished mass that was resident", ylabel="recall of far answers", ylim=(0, 1.03))
    title(left, "Hits and recall", "fan-out 0.25; half or a quarter kept")
    handles, names = left.get_legend_handles_labels()
    kept = [(h, n) for h, n in zip(handles, names, strict=True) if n.startswith(("evict", "nothing"))]
    left.legend(*zip(*kept, strict=True), fontsize=7.5, loc="lower right")
    _bars(middle, evicting, lambda r: r["routed_to_low"]["0.5"], "share of tokens")
    title(middle, "Routed to a low-hit expert", "hit of (expert, layer) below one half")
    _bars(right, evicting, lambda r: r["own_low"]["0.5"], "share of (token, layer)")
    title(right, "Own wishes mostly gone", "less than half of the wished mass resident")
    figure.tight_layout()
    return figure


def _bars(axes: Any, rows: list[dict], value: Callable[[dict], float], label: str) -> None:
    rankers = list(dict.fromkeys(r["lever"] for r in rows))
    keeps = sorted({r["value"] for r in rows}, reverse=True)
    for i, keep in enumerate(keeps):
        heights = [next(value(r) for r in rows if r["lever"] == k and r["value"] == keep) for k in rankers]
        places = [j + (i - (len(keeps) - 1) / 2) * 0.36 for j in range(len(rankers))]
        axes.bar(places, heights, 0.34, color=("#9ecae1", "#08519c")[i], label=f"keeps {keep:g}")
    axes.set_xticks(range(len(rankers)), [k.removeprefix("evict/").replace("_", "\n") for k in rankers])
    axes.set(ylabel=label, ylim=(0, max(0.05, axes.get_ylim()[1] * 1.18)))
    axes.legend(fontsize=8, loc="upper left", ncols=2)
    axes.grid(axis="x", visible=False)


@styled
def conflicts(study: dict) -> Any:
    rows = [r for r in study["effects"]["result"]["rows"] if r["lever"].startswith("evict/")]
    panels = [(f"{keep:.0%} kept", "evicted as soon as the prompt is read", [r for r in rows if r["value"] == keep])
              for keep in sorted({r["value"] for r in rows}, reverse=True)]  # fmt: skip
    if "informed" in study:
        late = [r for r in study["informed"]["result"]["rows"] if r["evicted_pages"]]
        panels.append(("50% kept, informed", "evicted after four seconds of attention", late))
    figure, places = plt.subplots(1, len(panels), figsize=(3.7 * len(panels), 3.8), sharey=True)
    for axes, (name, note, mine) in zip(places, panels, strict=True):
        for row in mine:
            label, colour, marker = LEVERS["evict/" + row["lever"].partition("/")[2]]
            windows = [float(w) for w in row["asked_again"] if float(w) < 60]
            again = [100 * row["asked_again"][f"{w:g}"] for w in windows]
            axes.plot(windows, again, color=colour, marker=marker, ms=5, label=label.removeprefix("evict, "))
        axes.set(xlabel="W, model seconds after the eviction", xscale="log")
        axes.set_xticks(windows, [f"{w:g}" for w in windows])
        axes.minorticks_off()
        title(axes, name, note)
    places[0].set(ylabel="% of evicted pages asked for again", ylim=(0, 90))
    places[0].legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    return figure


@styled
def lookup(study: dict) -> Any:
    runs = study["lookup"]["result"]["runs"]
    figure, panels = plt.subplots(1, len(runs), figsize=(12, 3.9))
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        rows = run["rows"]
        for row in rows:
            row["lookup_ms"] = row["score_ms"] + row["choose_ms"]
            known = row["read_ms"] + row["lookup_ms"] + row["messages_cpu_ms"]
            row["other_ms"] = row["step_ms"] - known
        base = [0.0] * len(rows)
        for part, (label, colour) in TIME_PARTS.items():
            heights = [row[part] for row in rows]
            axes.bar(range(len(rows)), heights, 0.7, bottom=base, color=colour, label=label)
            base = [b + h for b, h in zip(base, heights, strict=True)]
        axes.set_xticks(range(len(rows)), [f"{row['fan_out']:g}" for row in rows])
        axes.set(xlabel="fan-out")
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, 1.06 * max(row["step_ms"] for row in rows))
        requests = f"{run['requests']} requests of {run['prompt_tokens']} tokens"
        title(axes, name.replace("random, 8 layers of 512", "random, 8 × 512"), requests)
    panels[0].set_ylabel("CPU ms of a decode step, per rank")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=8.5)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


@styled
def gate(study: dict) -> Any:
    found = study["placement"]["result"]
    rows = [r for r in found["coverage"] if r["budget"] == 0.25]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for i, (name, colour) in enumerate(CHOICES.items()):
        left.bar([r["layer"] + (i - 2) * 0.16 for r in rows], [r[name] for r in rows], 0.15, color=colour, label=name)
    left.set_xticks([r["layer"] for r in rows], [f"layer {r['layer']}" for r in rows])
    left.set(ylabel="share of far attention mass", ylim=(0, 1.16))
    left.legend(fontsize=8, ncols=5, loc="upper left", columnspacing=1.0, handlelength=1.2)
    left.grid(axis="x", visible=False)
    title(left, "Mass on a quarter of the far pages", "by who chose them")
    routed = [r for r in found["routed"] if r["ranks"] == 8]
    asked = [r["asked"] for r in routed]
    for key, label, colour, style in (
        ("best_mass", "mass, ranks chosen in hindsight", "#222222", "-"),
        ("centroid_mass_same_pages", "mass, as many pages by centroid", "#0072B2", "-"),
        ("gate_mass", "mass, ranks chosen by the gate", "#D55E00", "-"),
        ("gate_pages", "pages that these ranks hold", "#9aa5b1", "--"),
    ):
        right.plot(asked, [r[key] for r in routed], color=colour, ls=style, marker="o", ms=4, label=label)
    right.set(xlabel="ranks asked, of 8", ylabel="share", ylim=(0, 1.03))
    right.legend(fontsize=8, loc="lower right")
    title(right, "Asking only some ranks", "expert-sharded pages")
    figure.tight_layout()
    return figure


@styled
def placement(study: dict) -> Any:
    rows = study["placement"]["result"]["placement"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9))
    ranks = sorted({r["ranks"] for r in rows})
    looks = (("expert", "exact", "#D55E00"), ("expert", "0.25", "#F2B48C"), ("stripe", "exact", "#0072B2"),
             ("stripe", "0.25", "#9ecae1"))  # fmt: skip
    for i, (how, read, colour) in enumerate(looks):
        mine = [next(r for r in rows if r["ranks"] == n and r["placement"] == how)[read] for n in ranks]
        at = [j + (i - 1.5) * 0.2 for j in range(len(ranks))]
        where = "by expert" if how == "expert" else "striped"
        label = f"{where}, {'all pages' if read == 'exact' else 'a quarter, centroid'}"
        left.bar(at, [m["balance_batch"] for m in mine], 0.19, color=colour, label=label)
        right.bar(at, [m["wire_bytes_per_token"] / 1024 for m in mine], 0.19, color=colour, label=label)
    for axes in (left, right):
        axes.set_xticks(range(len(ranks)), [f"{n} ranks" for n in ranks])
        axes.grid(axis="x", visible=False)
    left.axhline(1.0, color=MUTED, lw=0.9, ls=":")
    left.set(ylabel="fullest rank over the mean")
    left.legend(fontsize=8, loc="upper left")
    title(left, "Pages to read, 16 requests at once", "a step waits for the fullest rank")
    right.set(ylabel="KiB for each decoded token")
    title(right, "Questions and answers", "embedded model, all layers")
    figure.tight_layout()
    return figure


FIGURES: dict[str, tuple[str, Callable[[dict], Any]]] = {
    "study-fidelity": ("effects", fidelity),
    "study-hits": ("effects", hits),
    "study-conflicts": ("effects", conflicts),
    "study-lookup": ("lookup", lookup),
    "study-gate": ("placement", gate),
    "study-placement": ("placement", placement),
}


def draw(study: dict, folder: Path) -> None:
    """Draw what the file has parts for."""
    if "controls" in study:
        study["effects"]["result"]["rows"] += study["controls"]["result"]["rows"][1:]
    for name, (part, figure_of) in FIGURES.items():
        if part in study:
            figure = figure_of(study)
            figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
            plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "study.json")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "figures")
    options = parser.parse_args()
    draw(json.loads(options.json.read_text()), options.folder)
