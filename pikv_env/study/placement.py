"""Recorded attention asked two questions: what do tags know of it, and what does sharding pages by tag cost?

Nothing is served here: all numbers come from a trace library. Far pages are those outside the always-on set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.library import TraceLibrary

BUDGETS = (0.10, 0.25, 0.50)
RANKS = (2, 4, 8)
BATCH = 16
"""Requests that decode together, for the balance of a batch."""
RESAMPLES = 2000
CHOICES = ("gate", "gate_early", "centroid", "recent", "best", "random")
"""Who chooses pages: `gate` breaks ties between pages of one tag at random, `gate_early` as the router does, towards
the start of the request; `recent` takes the latest."""
LEAST_FAR, SINK_PAGES, WINDOW_PAGES = 8, 1, 2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """Far pages of one observation in one layer."""

    content: int
    layer: int
    mass: Floats
    """(n,) shares of the far mass."""
    far: float
    """The far mass itself."""
    tags: NDArray[np.int64]
    gate: Floats
    """(E,) predicted gate."""
    score: Floats
    """(n,) query · centroid."""


def looks(library: TraceLibrary) -> Iterator[Look]:
    """Every recorded observation with enough far pages to choose among.

    Raises:
        ValueError: there is none.
    """
    found = False
    for c in range(len(library)):
        for o in range(library.num_observations(c)):
            context = int(library.prompt_tokens[c]) + o * library.observe_tokens + 1
            far = slice(SINK_PAGES, -(-context // library.page_tokens) - 1 - WINDOW_PAGES)
            for layer in range(library.layers):
                mass = library.mass[c, o, layer, far].astype(np.float64)
                if len(mass) < LEAST_FAR or mass.sum() <= 0:
                    continue
                found = True
                tags = np.maximum(library.tags[c, layer, far], 0).astype(np.int64)
                gate, score = library.gate[c, o, layer], library.score[c, o, layer, far]
                total = float(mass.sum())
                yield Look(c, layer, mass / total, total, tags, gate.astype(np.float64), score.astype(np.float64))
    if not found:
        raise ValueError(f"no recorded context has {LEAST_FAR} pages outside the always-on set")


def best(mass: Floats, order: Floats, k: int) -> float:
    """Mass of the k pages that come first in `order` (higher is better, ties to the lower page)."""
    return float(mass[np.argsort(-order, kind="stable")[:k]].sum())


def best_of_tied(mass: Floats, order: Floats, k: int) -> float:
    """The same, expected where ties are broken at random."""
    last = np.sort(order)[::-1][k - 1]
    above, tied = order > last, order == last
    return float(mass[above].sum() + mass[tied].mean() * (k - above.sum()))


def gate_knowledge(library: TraceLibrary) -> list[dict[str, Any]]:
    """By layer and budget: the far mass on the pages that each of `CHOICES` takes, and what it is over random pages'
    with a 95 % bootstrap interval over contents."""
    cells: dict[tuple[int, float], dict[int, list[list[float]]]] = {}
    for look in looks(library):
        for budget in BUDGETS:
            k = max(1, math.ceil(budget * len(look.mass)))
            by_gate, recent = look.gate[look.tags], np.arange(len(look.mass), dtype=np.float64)
            row = [best_of_tied(look.mass, by_gate, k), best(look.mass, by_gate, k)]
            row += [best(look.mass, by, k) for by in (look.score, recent, look.mass)] + [k / len(look.mass)]
            cells.setdefault((look.layer, budget), {}).setdefault(look.content, []).append(row)
    rows: list[dict[str, Any]] = []
    for (layer, budget), contents in sorted(cells.items()):
        means = np.array([np.mean(found, axis=0) for found in contents.values()])
        captured = dict(zip(CHOICES, means.mean(0).tolist(), strict=True))
        ends = {f"{name}_over_random_ci95": _interval(means[:, i], means[:, -1]) for i, name in enumerate(CHOICES[:4])}
        rows.append({"layer": layer, "budget": budget, "contents": len(means), **captured, **ends})
    return rows


def _interval(part: Floats, whole: Floats) -> list[float]:
    drawn = np.random.default_rng(0).integers(0, len(part), (RESAMPLES, len(part)))
    ratios = part[drawn].mean(1) / whole[drawn].mean(1)
    return [float(x) for x in np.percentile(ratios, (2.5, 97.5))]


def homes(look: Look, how: str, ranks: int, experts: int) -> NDArray[np.int64]:
    """(n,) rank of every far page: by its tag as the ledger does it (`expert`), or dealt in turn (`stripe`)."""
    if how == "expert":
        return look.tags * ranks // experts
    return np.arange(len(look.tags)) % ranks


def placement(library: TraceLibrary, query_bytes: float) -> list[dict[str, Any]]:
    """Expert sharding and striping side by side, by number of ranks: balance of what is stored, balance and wire
    bytes of what is read exactly and sparsely (the centroid's pages, so both read the same).

    Args:
        library: recorded traces.
        query_bytes: bytes of a question and its answer, one query row, layer and remote rank.
    """
    every = list(looks(library))
    rows = []
    for ranks in RANKS:
        for how in ("expert", "stripe"):
            found: dict[str, Any] = {"ranks": ranks, "placement": how}
            placed = [homes(look, how, ranks, library.experts) for look in every]
            for name, share in (("exact", 1.0), *((f"{b:g}", b) for b in BUDGETS)):
                read = [_read(look, at, share) for look, at in zip(every, placed, strict=True)]
                found[name] = _cost(every, read, ranks, query_bytes, library.layers)
            rows.append(found)
    return rows


def _read(look: Look, at: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Ranks of the pages that are read, (k,)."""
    k = max(1, math.ceil(share * len(at)))
    return at[np.argsort(-look.score, kind="stable")[:k]]


def _cost(
    every: list[Look], read: list[NDArray[np.int64]], ranks: int, query_bytes: float, layers: int
) -> dict[str, float]:
    """`balance` is the fullest rank's pages over the mean: of one query, and of batches of random ones in a layer."""
    counts = np.array([np.bincount(at, minlength=ranks) for at in read])
    owners = np.array([look.content % ranks for look in every])
    remote = (counts > 0).sum(1) - (counts[np.arange(len(every)), owners] > 0)
    layer = np.array([look.layer for look in every])
    rng, batches = np.random.default_rng(0), []
    for at in range(layers):
        mine = counts[layer == at]
        summed = mine[rng.integers(0, len(mine), (500, BATCH))].sum(1)
        batches.append(float((summed.max(1) / summed.mean(1)).mean()))
    return {
        "balance_query": float((counts.max(1) / counts.mean(1)).mean()),
        "balance_batch": float(np.mean(batches)),
        "remote_ranks": float(remote.mean()),
        "wire_bytes_per_token": float(remote.mean() * query_bytes * layers),
    }


def routed_ranks(library: TraceLibrary) -> list[dict[str, Any]]:
    """What a query gets that asks only m of G ranks: chosen by the gate's probability of the experts that live
    there, by hindsight, and at random; and what the centroid's pages hold where as many pages are read anywhere."""
    cells: dict[tuple[int, int], list[list[float]]] = {}
    for look in looks(library):
        for ranks in RANKS:
            at = homes(look, "expert", ranks, library.experts)
            gate = np.bincount(np.arange(library.experts) * ranks // library.experts, look.gate, ranks)
            mass = np.bincount(at, look.mass, ranks)
            pages = np.bincount(at, minlength=ranks) / len(at)
            for m in range(1, ranks + 1):
                asked = np.argsort(-gate, kind="stable")[:m]
                k = max(1, round(float(pages[asked].sum()) * len(at)))
                row = [
                    mass[asked].sum(),
                    pages[asked].sum(),
                    np.sort(mass)[::-1][:m].sum(),
                    best(look.mass, look.score, k),
                ]
                cells.setdefault((ranks, m), []).append([float(x) for x in row])
    names = ("gate_mass", "gate_pages", "best_mass", "centroid_mass_same_pages")
    return [
        {"ranks": ranks, "asked": m, **dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))}
        for (ranks, m), found in sorted(cells.items())
    ]
