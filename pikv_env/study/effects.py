"""What each setting does: hits, low-hit experts, conflicts, F, divergence of logits, accuracy, recall, latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from pikv_env.study.contents import Probe
from pikv_env.study.probe import ProbeEngine, serve_probes
from pikv_env.study.settings import Setting
from pikv_runtime.ledger.state import Tally
from pikv_runtime.routers import ROUTERS, Router

WINDOWS_S = (1.0, 2.0, 5.0, 10.0, 60.0)
"""Seconds within which a wish for an evicted page counts as a conflict."""
LOW_HIT = (0.5, 0.9)
RESAMPLES = 2000

Floats = NDArray[np.float64]


def study_effects(model: Any, probes: Sequence[Probe], rows: Sequence[Setting]) -> Iterator[dict[str, Any]]:
    """Serve the probes under one setting after the other; the first must be the exact cache, which the others are
    compared with."""
    exact: ProbeEngine | None = None
    for setting in rows:
        with scored_by(setting):
            engine = serve_probes(model, setting.config, setting.policy, probes)
        exact = exact or engine
        named = {"setting": setting.name, "lever": setting.lever, "value": setting.value}
        yield {**named, **_row(engine, exact, probes)}


@contextmanager
def scored_by(setting: Setting) -> Iterator[None]:
    """The setting's own scores in the place of its router's, until exit."""
    if setting.scores is None:
        yield
        return
    torch.manual_seed(0)
    with patch.dict(ROUTERS._entries, {setting.config.router: Router(setting.scores)}):
        yield


def _row(engine: ProbeEngine, exact: ProbeEngine, probes: Sequence[Probe]) -> dict[str, Any]:
    costs, tally = engine.costs(), engine.ledger.tally[0]
    return {
        "fidelity": 1.0 - engine.score().loss,
        **_outputs(engine, exact, probes),
        **hits(engine),
        **conflicts(engine, int(tally[Tally.EVICTED_PAGES])),
        "gate_predicted": float(engine.predicted[1] / max(1.0, engine.predicted[0])),
        "tpot_model_ms": float(np.nanmean(costs.tpot_s)) * 1e3,
        "decode_wall_ms": float(np.median(engine.decode_s)) * 1e3,
        "resident_bytes_mean": costs.resident_bytes_mean,
    }


def _outputs(engine: ProbeEngine, exact: ProbeEngine, probes: Sequence[Probe]) -> dict[str, Any]:
    """Divergence from the exact run's distributions, accuracy on the text, recall of far answers; by request."""
    kl, agree, right, answered, asked = [], [], [], [], []
    for probe, own, other in zip(probes, engine.log_probs, exact.log_probs, strict=True):
        truth = np.asarray(probe.request.exact_ids)
        mine, theirs = np.stack(own), np.stack(other)
        # The first token comes from the prompt's pass, which reads everything in every setting.
        kl.append(float((np.exp(theirs[1:]) * (theirs[1:] - mine[1:])).sum(1).mean()))
        guess = mine.argmax(1)
        agree.append(float((guess == theirs.argmax(1))[1:].mean()))
        right.append(float((guess == truth)[1:].mean()))
        answered.append(sum(bool((guess[a:b] == truth[a:b]).all()) for a, b in probe.answers))
        asked.append(len(probe.answers))
    kinds = sorted({p.kind for p in probes})
    of = {kind: [i for i, p in enumerate(probes) if p.kind == kind] for kind in kinds}
    return {
        "kl": float(np.mean(kl)),
        "kl_ci95": _interval(np.array(kl), np.ones(len(kl))),
        "agreement": float(np.mean(agree)),
        "accuracy": float(np.mean(right)),
        "recall": float(np.sum(answered) / max(1, np.sum(asked))),
        "recall_ci95": _interval(np.array(answered, float), np.array(asked, float)),
        "answers": int(np.sum(asked)),
        "by_kind": {
            kind: {
                "accuracy": float(np.mean([right[i] for i in at])),
                "kl": float(np.mean([kl[i] for i in at])),
                "recall": _share(sum(answered[i] for i in at), sum(asked[i] for i in at)),
            }
            for kind, at in of.items()
        },
    }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _interval(part: Floats, whole: Floats) -> list[float]:
    """95 % bootstrap interval of Σ part / Σ whole over requests."""
    drawn = np.random.default_rng(0).integers(0, len(part), (RESAMPLES, len(part)))
    ratios = part[drawn].sum(1) / np.maximum(1e-12, whole[drawn].sum(1))
    return [float(x) for x in np.percentile(ratios, (2.5, 97.5))]


def hits(engine: ProbeEngine) -> dict[str, Any]:
    """Hit rate, and the share of tokens whose gate chose an expert with a low one.

    The hit of an (expert, layer) is the attention mass of its wished pages that was resident. `own` is the share of
    (token, layer) pairs whose own wishes had a low hit.
    """
    wished, hit = engine.wished, engine.hit
    rate = np.where(wished > 0, hit / np.maximum(wished, 1e-12), 1.0)
    routed = engine.routed / max(1.0, float(engine.routed.sum()))
    own = np.array(engine.own_hit)
    return {
        "hit": float(hit.sum() / wished.sum()) if wished.sum() > 0 else 1.0,
        "hit_by_expert": {"min": float(rate.min()), "max": float(rate.max())},
        "routed_to_low": {str(low): float(routed[rate < low].sum()) for low in LOW_HIT},
        "own_low": {str(low): float((own < low).mean()) if len(own) else 0.0 for low in LOW_HIT},
        "observed": int(engine.routed.sum()),
    }


def conflicts(engine: ProbeEngine, evicted: int) -> dict[str, Any]:
    """Of the evicted pages, the share that an observed step wished for within W seconds; a lower bound, since one of
    sixteen steps is observed. And of all wishes, the share that was for an evicted page."""
    gaps = np.array(list(engine.gaps.values()))
    return {
        "evicted_pages": evicted,
        "asked_again": {f"{w:g}": float((gaps <= w).sum() / evicted) if evicted else 0.0 for w in WINDOWS_S},
        "wishes_missed": float(engine.misses / max(1, engine.wishes)),
    }


OUTCOMES = {"kl": -1, "agreement": 1, "accuracy": 1, "recall": 1}
"""What F stands for, and whether more of it is better."""


def proxy(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How well F orders settings by what it stands for: Spearman's ρ, Kendall's τ-b and the largest difference of an
    outcome between two settings whose F differs by at most 0.01."""
    from scipy.stats import kendalltau, spearmanr

    lossy = [row for row in rows if row["setting"] != "exact"]
    fidelity = np.array([row["fidelity"] for row in lossy])
    found: dict[str, Any] = {"settings": len(lossy)}
    close = np.abs(fidelity[:, None] - fidelity) <= 0.01
    for name, sign in OUTCOMES.items():
        values = np.array([row[name] for row in lossy])
        apart = np.abs(values[:, None] - values) * close
        i, j = np.unravel_index(int(apart.argmax()), apart.shape)
        found[name] = {
            "spearman": float(spearmanr(fidelity, sign * values).statistic),
            "kendall": float(kendalltau(fidelity, sign * values).statistic),
            "furthest_at_equal_F": {
                "settings": [lossy[i]["setting"], lossy[j]["setting"]],
                "apart": float(apart[i, j]),
            },
        }
    return found
