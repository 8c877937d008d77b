"""Cost of a decode step against scale, 1 to 1024 GPUs: writes benchmarks/scale.json and docs/figures/scale.png.

    python benchmarks/scale.py [--json FILE] [--figure FILE]

Computed from the profile `h100-ib-1024` by `pikv_env.scale`; nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np

from pikv_agents.commands.options import origin
from pikv_env.builtin import resolve_library
from pikv_env.scale import EXACT, METHODS, Load, decode_step
from pikv_runtime.ledger.state import Price
from pikv_runtime.profiles import load_geometry, load_profile

ROOT = Path(__file__).resolve().parents[1]
PROFILE = "h100-ib-1024"
GPUS = tuple(2**k for k in range(11))
MEASURED = 64
GEOMETRIES = ("qwen3-30b-a3b", "deepseek-v3")
# Requests by GPUs. Many short: each GPU brings its own. Few long: eight requests, whatever the machine.
LOADS = {
    "many-short": lambda gpus: Load(32 * gpus, 4_096),
    "few-long": lambda gpus: Load(8, 262_144),
}
TITLES = {
    "many-short": "32 requests per GPU, 4 k tokens each",
    "few-long": "8 requests in all, 256 k tokens each",
}
COLOURS = {
    "local": "#222222", "sharded-exact": "#c23b22", "sharded-routed": "#e08e0b", "striped": "#2f6fb0",
    "striped-node": "#4a9e6b",
}  # fmt: skip


def tag_skew() -> dict[int, float]:
    """Fullest shard over the mean one in the built-in traces, mean over layers, by ranks (1 to 8)."""
    library = resolve_library()
    found = {1: 1.0}
    for ranks in (2, 4, 8):
        layers = []
        for layer in range(library.layers):
            tags = library.tags[:, layer]
            homes = tags[tags >= 0].astype(np.int64) * ranks // library.experts
            counts = np.bincount(homes, minlength=ranks)
            layers.append(counts.max() / counts.mean())
        found[ranks] = float(np.mean(layers))
    return found


def rows(skew: dict[int, float]) -> list[dict]:
    profile, out = load_profile(PROFILE), []
    for name in GEOMETRIES:
        geometry = load_geometry(name)
        for load_name, load_of in LOADS.items():
            for gpus in GPUS:
                for method in METHODS:
                    balances = {"even": 1.0, "as-tagged": skew[min(gpus, 8)]}
                    for balance, factor in balances.items():
                        if balance == "as-tagged" and not method.startswith("sharded"):
                            continue
                        row = {"geometry": name, "load": load_name, "gpus": gpus, "method": method, "balance": balance}
                        out.append(row | cost(method, profile, geometry, gpus, load_of(gpus), factor))
    return out


def cost(method, profile, geometry, gpus, load, factor) -> dict:
    """Milliseconds and bytes of one step; None where the weights alone do not fit."""
    try:
        step = decode_step(method, profile, geometry, gpus, load, tags=geometry.experts_per_token, skew=factor)
    except ValueError:
        return {"step_ms": None, "exact": method in EXACT}
    parts = {key: round(asdict(step)[f"{key}_s"] * 1e3, 4) for key in ("attention", "link", "other")}
    return {
        "step_ms": round(step.step_s * 1e3, 4),
        **{f"{key}_ms": value for key, value in parts.items()},
        "wire_mb_per_gpu": round(step.wire_bytes / 1e6, 3),
        "read_share": round(step.read_share, 4),
        "exact": method in EXACT,
        "fits": step.fits,
        "extrapolated": step.extrapolated,
    }


def against_published() -> list[dict]:
    """Throughput of a node serving DeepSeek-V3, published for 96 H100 (lmsys.org/blog/2025-05-05-large-scale-ep).

    Prompts of 2,000 tokens; decoding with 256 requests per GPU on 72 GPUs (64 here), prefill over 32 GPUs. That
    engine overlaps links with arithmetic and dispatches prompts with other kernels; nothing of that is priced.
    """
    geometry, profile = load_geometry("deepseek-v3"), load_profile("h100-ib-64")
    per_gpu, context = 256, 2_050
    p = profile.prices(geometry, ranks=64, rows=64 * per_gpu)
    pages = per_gpu * geometry.layers * context / 16
    decode_s = p[Price.STEP] + per_gpu * p[Price.DECODE_TOKEN] + pages * p[Price.READ_NATIVE]
    p = profile.prices(geometry, ranks=32, chunk_tokens=16_384)
    prompt_s = 2_000 * p[Price.PREFILL_TOKEN] + 2_000 * 1_000 * p[Price.PREFILL_PAIR]
    rates = (("decode", 8 * per_gpu / decode_s, 22_300), ("prefill", 8 * 2_000 / prompt_s, 52_300))
    return [
        {"phase": n, "tokens_per_s_of_a_node": round(c), "published": p, "ratio": round(c / p, 3)} for n, c, p in rates
    ]


def figure(found: list[dict], path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False})
    panels, axes = plt.subplots(2, 2, figsize=(10.5, 7.0), sharex=True, sharey="row", layout="constrained")
    for column, load in enumerate(LOADS):
        for line, (key, label) in enumerate(
            (("step_ms", "decode step, ms"), ("wire_mb_per_gpu", "leaves a GPU per step, MB"))
        ):
            ax = axes[line, column]
            draw(ax, [r for r in found if r["geometry"] == GEOMETRIES[0] and r["load"] == load], key)
            ax.set(xscale="log", yscale="log")
            ax.set_xticks(GPUS, [str(g) for g in GPUS])
            ticks = (5, 10, 20, 50, 100, 200, 500) if line == 0 else (1, 10, 100, 1000, 10000)
            ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
            ax.minorticks_off()
            ax.axvspan(MEASURED * 1.19, GPUS[-1] * 1.25, color="#eeeeee", zorder=0, lw=0)
            ax.set_xlim(0.85, GPUS[-1] * 1.25)
            ax.grid(axis="y", color="#dddddd", lw=0.6)
            if column == 0:
                ax.set_ylabel(label)
            if line == 0:
                ax.set_title(TITLES[load], fontsize=10)
            else:
                ax.set_xlabel("GPUs (grey: extrapolated links)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    panels.legend(handles, labels, loc="outside lower center", ncol=3, frameon=False)
    title = f"{GEOMETRIES[0]} on H100 nodes over InfiniBand: computed, nothing overlaps"
    panels.suptitle(f"{title}; a missing point does not fit into memory", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    panels.savefig(path, dpi=130)


NAMES = {
    "local": "with its request (exact)",
    "sharded-exact": "expert-sharded, all ranks asked (exact)",
    "sharded-routed": "expert-sharded, routed (not exact)",
    "striped": "striped over all GPUs (exact)",
    "striped-node": "striped within nodes (exact)",
}


def draw(ax, found: list[dict], key: str) -> None:
    for method in METHODS:
        for balance, style in (("even", "-"), ("as-tagged", "--")):
            mine = [r for r in found if r["method"] == method and r["balance"] == balance and r["step_ms"] is not None]
            if not mine or (key != "step_ms" and balance != "even"):
                continue
            points = [(r["gpus"], r[key]) for r in mine if r["fits"] and r[key] > 0]
            label = NAMES[method] if balance == "even" else f"{NAMES[method].partition(' (')[0]}, load as tagged"
            width = {"local": 2.6, "sharded-exact": 4.0}.get(method, 1.6) if balance == "even" else 1.4
            ax.plot(*zip(*points, strict=True) if points else ([], []), style, color=COLOURS[method], lw=width,
                    marker="o", ms=3, label=label, alpha=1.0 if balance == "even" else 0.6)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "scale.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "scale.png")
    args = parser.parse_args()
    skew = tag_skew()
    found = rows(skew)
    meta = origin() | {"command": "python benchmarks/scale.py", "profile": PROFILE, "computed": "not measured"}
    body = ",\n  ".join(json.dumps(row) for row in found)
    head = json.dumps(
        {"meta": meta, "tag_skew_by_ranks": skew, "methods": METHODS, "published": against_published()}, indent=1
    )
    args.json.write_text(f'{head[:-2]},\n "rows": [\n  {body}\n ]\n}}\n')
    figure(found, args.figure)
    print(f"{len(found)} rows in {args.json}, figure {args.figure}")


if __name__ == "__main__":
    main()
