"""A realistic summary made of smooth curves and seeded noise; no number in it was measured."""

from __future__ import annotations

import numpy as np

FAMILIES = {
    "facts": ("train", 0.31),
    "code": ("train", 0.22),
    "dialogue": ("validation", 0.27),
    "needle": ("test", 0.35),
    "mooncake-chat": ("test", 0.24),
    "regime-shift": ("test", 0.18),
    "prose": ("test", 0.04),
}
# latency, memory, fidelity at a family of middling difficulty
POLICIES = {
    "capped_exact": (7.9, 0.93, 1.0),
    "static_global": (1.52, 0.71, 0.974),
    "static_tuned": (1.42, 0.70, 0.978),
    "lru": (1.63, 0.83, 0.976),
    "h2o": (1.49, 0.78, 0.977),
    "lazy": (1.39, 0.74, 0.976),
    "arc": (1.58, 0.82, 0.979),
    "streaming_llm": (1.30, 0.60, 0.931),
    "learned": (1.24, 0.68, 0.978),
}
SEEDS = list(range(8))
LAMBDA1, LAMBDA2 = 0.25, 10.0


def _costs(rng, name, hardness, shift):
    latency, memory, fidelity = POLICIES[name]
    latency = latency * hardness + (shift if name == "learned" else 0)
    return {
        "latency": latency,
        "memory": memory,
        "fidelity": fidelity + rng.normal(0, 0.001) * (fidelity < 1),
    }


def _evaluation(rng, shift):
    families, by_policy = {}, {name: [] for name in POLICIES}
    for family, (split, room) in FAMILIES.items():
        hardness, noise = rng.uniform(0.8, 1.3), rng.normal(0, 0.06, len(SEEDS))
        rows = {}
        for name in POLICIES:
            costs = _costs(rng, name, hardness, shift)
            mean = costs["latency"] + LAMBDA1 * costs["memory"] + LAMBDA2 * (1 - costs["fidelity"])
            scores = mean + (noise - noise.mean()) * mean + rng.normal(0, 0.01, len(SEEDS))
            half = 1.96 * scores.std() / np.sqrt(len(SEEDS))
            by_policy[name] += [mean] if split == "test" else []
            rows[name] = costs | {
                "J": mean,
                "worst_request": mean * 3,
                "ci95": [mean - half, mean + half],
                "scores": scores.tolist(),
            }
        families[family] = {"split": split, "pressure": 1.6, "headroom": room, "policies": rows}
    iqm = {
        name: {
            "J": float(np.mean(v)),
            "ci95": [float(np.mean(v)) * 0.965, float(np.mean(v)) * 1.035],
            "gap_closed_static_global": 0.61,
            "gap_closed_static_tuned": 0.44,
        }
        for name, v in by_policy.items()
    }
    return {
        "suite": "quick",
        "lambda1": LAMBDA1,
        "lambda2": LAMBDA2,
        "seeds": SEEDS,
        "families": families,
        "iqm": iqm,
        "oracle": {"relaxation": 1.2, "feasible": 1.35},
        "meta": {},
    }


def _run(name, rng, eager):
    count = 240
    time_s = np.arange(count) * 4.0
    load = 0.62 + 0.3 * np.exp(-(((time_s - 420) / 130) ** 2)) + 0.16 * np.exp(-(((time_s - 780) / 60) ** 2))
    load = np.clip(load + rng.normal(0, 0.015, count), 0, 1)
    squeeze = np.clip((load - (0.55 if eager else 0.8)) * (2.2 if eager else 6), 0, 1)
    live, cached = 900 * load, np.clip(420 - 380 * squeeze, 20, None)
    shares = np.stack([0.12 + 0 * squeeze, 0.88 - 0.75 * squeeze, 0.5 * squeeze, 0.25 * squeeze])
    shares /= shares.sum(0)
    pages = dict(zip(("native", "bf16", "int8", "int4"), (shares * live).tolist(), strict=True))
    pages["cached"] = cached.tolist()
    per_page = {"native": 1, "bf16": 1, "int8": 0.53, "int4": 0.3, "cached": 1}
    scale = 0.98 / max(sum(np.array(v) * per_page[k] for k, v in pages.items()))
    stored = {k: (np.array(v) * per_page[k] * scale).tolist() for k, v in pages.items()}
    evict = np.round(0.04 + 0.25 * squeeze * (0.4 if eager else 1), 3)
    return {
        "policy": name,
        "time_s": time_s.tolist(),
        "pages": pages,
        "bytes": stored,
        "evicted": np.cumsum(evict * 30).tolist(),
        "pressure": np.sum(list(stored.values()), 0).tolist(),
        "queue": np.round(np.clip(squeeze - 0.4, 0, 1) * (5 if eager else 14)).tolist(),
        "controls": {
            "mean_ratio": (1 + 1.6 * squeeze if eager else np.where(load > 0.85, 2.0, 1.0)).tolist(),
            "evict_fraction": evict.tolist(),
            "fan_out": (0.5 - 0.2 * squeeze if eager else 0 * load + 0.5).tolist(),
            "cached_share": (0.45 - 0.35 * squeeze if eager else 0 * load + 1).tolist(),
            "r_pressure": (1 + 2.2 * squeeze if eager else 0 * load + 2).tolist(),
        },
    }


def _live(rng):
    rows = []
    for policy in ("learned", "lazy", "static_tuned"):
        for where in ("trace", "live"):
            costs = _costs(rng, policy, 1.05 if where == "live" else 1.0, 0)
            costs["J"] = costs["latency"] + LAMBDA1 * costs["memory"] + LAMBDA2 * (1 - costs["fidelity"])
            extra = {"tokens_per_second": 412.0, "decision_us": 2.1, "controls_identical_on_ranks": True}
            rows.append({"policy": policy, "where": where} | costs | (extra if where == "live" else {}))
    return {"family": "needle", "ranks": 2, "rows": rows}


def make_summary(shift: float = 0.0, seed: int = 0) -> dict:
    """A summary whose learned policy has its latency moved by `shift` (0: it wins; 1: it loses)."""
    rng = np.random.default_rng(seed)
    evaluation = _evaluation(rng, shift)
    steps = np.arange(1, 121) * 4096
    learning = 2.9 - 1.1 * (1 - np.exp(-steps / 120_000))
    curve = [
        {
            "step": int(s),
            "episode_return": float(-j + rng.normal(0, 0.09)),
            "eval_J": float(j) if i % 12 == 0 else None,
        }
        for i, (s, j) in enumerate(zip(steps, learning, strict=True))
    ]
    best = np.array([0.22, 0.41, 0.66, 0.72, 0.58, 0.35])
    return {
        "meta": {
            "date": "2026-01-31",
            "commit": "0123abc",
            "machine": "2-core CPU, 8 GB",
            "title": "PiKV quickstart",
            "command": "pikv quickstart --out runs/quickstart",
            "versions": {"python": "3.11", "torch": "2.13", "numpy": "2.4"},
            "stages": [{"stage": s, "seconds": t} for s, t in (("record", 48.0), ("train", 402.5), ("evaluate", 61.0))],
        },
        "coverage": [
            {
                "layer": i,
                "budget": b,
                "gate": b * 1.1,
                "centroid": float(m * 0.88),
                "random": b * 0.95,
                "best": float(m),
            }
            for b in (0.10, 0.25)
            for i, m in enumerate(np.clip(best + (b - 0.1) * 1.5, 0, 0.97))
        ],
        "headroom": [
            {
                "family": f,
                "split": row["split"],
                "pressure": 1.6,
                "headroom": row["headroom"],
                "policies": {
                    n: {k: row["policies"][p][k] for k in ("J", "latency", "memory", "fidelity")}
                    for n, p in (
                        ("capped_exact", "capped_exact"),
                        ("static_global", "static_global"),
                        ("static_tuned", "static_tuned"),
                        ("best_heuristic", "lazy"),
                        ("greedy", "h2o"),
                    )
                },
            }
            for f, row in evaluation["families"].items()
        ],
        "training": {"curve": curve, "seconds": 402.5, "steps_per_second": 1220.0},
        "evaluation": evaluation,
        "policy": {
            "bundle": "runs/quickstart/policy-0.1",
            "golden_pairs": 64,
            "golden_error": 3.1e-7,
            "decision_us": {"native": 1.3, "numpy": 41.0, "sb3_predict": 420.0},
            "compile_seconds": 0.9,
        },
        "live": _live(rng),
        "timeline": {"family": "needle", "runs": [_run("learned", rng, True), _run("lazy", rng, False)]},
        "verdict": ["One training seed: a first look, not evidence about other seeds."],
    }
