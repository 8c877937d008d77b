"""Coverage: how much far attention mass a read set of a given size captures, by router and layer.

Far pages are those outside the always-on set. `gate` ranks pages by the predicted gate's probability of their tag,
`centroid` by query · mean key, `random` is the expectation of random pages, `best` knows the mass.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pikv_env.traces.library import TraceLibrary

BUDGETS = (0.10, 0.25)


def _captured(mass: np.ndarray, rank_by: np.ndarray, k: int) -> float:
    return float(mass[np.argsort(-rank_by, kind="stable")[:k]].sum())


def _rows_of_layer(
    library: TraceLibrary, layer: int, sink_pages: int, window_pages: int, least_far: int
) -> dict[float, list[dict[str, float]]]:
    found: dict[float, list[dict[str, float]]] = {budget: [] for budget in BUDGETS}
    for c in range(len(library)):
        for o in range(library.num_observations(c)):
            context = int(library.prompt_tokens[c]) + o * library.observe_tokens + 1
            last = -(-context // library.page_tokens) - 1 - window_pages
            far = slice(sink_pages, last)
            mass = library.mass[c, o, layer, far]
            if len(mass) < least_far or mass.sum() <= 0:
                continue
            tags = np.maximum(library.tags[c, layer, far], 0)
            gate, score = library.gate[c, o, layer][tags], library.score[c, o, layer, far]
            for budget in BUDGETS:
                k = max(1, math.ceil(budget * len(mass)))
                total = float(mass.sum())
                found[budget].append(
                    {
                        "gate": _captured(mass, gate, k) / total,
                        "centroid": _captured(mass, score, k) / total,
                        "random": k / len(mass),
                        "best": _captured(mass, mass, k) / total,
                        "far": total,
                    }
                )
    return found


def coverage(
    library: TraceLibrary, *, sink_pages: int = 1, window_pages: int = 2, least_far: int = 8
) -> list[dict[str, Any]]:
    """One row per layer and budget: mean captured share of far mass by router, and the far mass itself.

    Args:
        library: recorded traces.
        sink_pages: pages at the start that are always read.
        window_pages: full recent pages that are always read.
        least_far: observations with fewer far pages are left out: nothing can be chosen among them.

    Raises:
        ValueError: no observation has enough far pages.
    """
    rows = []
    for layer in range(library.layers):
        for budget, found in _rows_of_layer(library, layer, sink_pages, window_pages, least_far).items():
            if not found:
                raise ValueError(f"no recorded context has {least_far} pages outside the always-on set")
            means = {key: float(np.mean([f[key] for f in found])) for key in found[0]}
            rows.append({"layer": layer, "budget": budget, "observations": len(found), **means})
    return rows
