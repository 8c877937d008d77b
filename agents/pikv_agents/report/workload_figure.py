"""One workload over time: arrivals, and what an infinite cache would find of its prompts."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from pikv_agents.report.style import HEURISTIC, LEARNED, MUTED, styled, title
from pikv_env.workloads.statistics import found, prompt_blocks
from pikv_runtime.requests import RequestList

BARS = "▁▂▃▄▅▆▇█"
Floats = NDArray[np.float64]


def over_time(workload: RequestList, page_tokens: int, bins: int) -> tuple[Floats, Floats, Floats]:
    """Edges of `bins` equal parts of the horizon, seconds; arrivals per second; share of prompt blocks found.

    The share is NaN in a part without full prompt blocks. Shapes (bins + 1,), (bins,), (bins,).
    """
    arrivals = np.array([r.arrival_s for r in workload.requests])
    blocks = prompt_blocks(workload, page_tokens)
    edges = np.linspace(0, workload.horizon_s, bins + 1)
    count = np.histogram(arrivals, edges)[0]
    total, hits = (
        np.histogram(arrivals, edges, weights=np.asarray(w, np.float64))[0]
        for w in ([len(b) for b in blocks], found(blocks))
    )
    share = np.divide(hits, total, out=np.full(bins, np.nan), where=total > 0)
    return edges, count / np.diff(edges), share


def sparklines(workload: RequestList, page_tokens: int, bins: int = 60) -> dict[str, str]:
    """Arrivals and reuse over time, one character for each part of the horizon."""
    _, rate, share = over_time(workload, page_tokens, bins)
    return {
        "arrivals over time": _bars(rate / max(float(rate.max()), 1e-9)) + f"  at most {rate.max():.1f} per s",
        "found in the cache": _bars(share) + "  full bar: 100 % of prompt blocks",
    }


def _bars(shares: Floats) -> str:
    """One bar for each share of 1, a blank where there is none."""
    return "".join(" " if np.isnan(s) else BARS[min(int(s * len(BARS)), len(BARS) - 1)] for s in shares)


@styled
def draw(workload: RequestList, page_tokens: int) -> Figure:
    """Three panels: arrivals per second, share of prompt blocks found, and the time between two uses of a block."""
    edges, rate, share = over_time(workload, page_tokens, 60)
    figure = Figure((8, 6.6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1)
    middle.sharex(top)
    minutes = edges / 60
    top.stairs(rate, minutes, fill=True, color=LEARNED, alpha=0.85)
    top.set_xlim(0, minutes[-1])
    title(top, workload.name, f"arrivals per second; {len(workload.requests)} requests")
    middle.stairs(np.nan_to_num(share), minutes, fill=True, color=HEURISTIC, alpha=0.85)
    middle.set_ylim(0, 1)
    middle.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    title(middle, "Reuse", "share of full prompt blocks that an infinite cache would find")
    middle.set_xlabel("model time, minutes")
    gaps = _gaps(workload, page_tokens)
    if len(gaps):
        low = max(float(np.percentile(gaps, 1)), 0.01)
        bins = np.geomspace(low, max(float(gaps.max()), 2 * low), 41)
        bottom.hist(np.maximum(gaps, low), bins=bins, weights=np.full(len(gaps), 1 / len(gaps)), color=MUTED)
        bottom.set_xscale("log")
        bottom.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        note = f"time between two uses of a block; median {np.median(gaps):.0f} s"
    else:
        bottom.set_yticks([])
        note = "no block is used twice"
    title(bottom, "Gaps", note)
    bottom.set_xlabel("seconds")
    return figure


def _gaps(workload: RequestList, page_tokens: int) -> Floats:
    """Seconds between consecutive uses of a block, over all blocks."""
    blocks = prompt_blocks(workload, page_tokens)
    ids = np.concatenate([np.zeros(0, np.int64), *blocks])
    times = np.repeat([r.arrival_s for r in workload.requests], [len(b) for b in blocks])
    order = np.argsort(ids, kind="stable")
    return np.diff(times[order])[ids[order][1:] == ids[order][:-1]]
