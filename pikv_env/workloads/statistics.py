"""Statistics of workloads and traces, before any cache has seen them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pikv_env.workloads.mooncake import MooncakeRecord
from pikv_runtime.requests import RequestList

QUANTILES = (10, 50, 90)


def describe(workload: RequestList, page_tokens: int = 16) -> dict[str, float]:
    """Describe arrivals, lengths and reuse of a workload.

    Args:
        workload: The requests.
        page_tokens: Tokens of one entry of `hash_ids`.

    Returns:
        `requests`, `rate_per_s`, `prompt_tokens` and `output_tokens` (means), `interarrival_cv`,
        `batch_share` (requests of class 1), and over full prompt blocks: `prefix_hit_rate` (share found in an
        infinite cache), `once_share` (share of distinct blocks that one request only has), `gap_p50_s` and
        `gap_p90_s` (between two uses of a block; 0 where none is used twice).
    """
    requests = workload.requests
    arrivals = np.array([r.arrival_s for r in requests], np.float64)
    out = {
        "requests": float(len(requests)),
        "rate_per_s": len(requests) / workload.horizon_s,
        "prompt_tokens": float(np.mean([r.prompt_tokens for r in requests])) if requests else 0.0,
        "output_tokens": float(np.mean([r.output_tokens for r in requests])) if requests else 0.0,
        "interarrival_cv": interarrival_cv(arrivals),
        "batch_share": float(np.mean([r.class_id == 1 for r in requests])) if requests else 0.0,
    }
    return {**out, **reuse(prompt_blocks(workload, page_tokens), arrivals)}


def describe_trace(
    records: Sequence[MooncakeRecord], block_tokens: int, jitter_s: float | None = None
) -> dict[str, float]:
    """Describe a trace in the Mooncake line format.

    Args:
        records: At least one, ordered by time.
        block_tokens: Tokens of one hash id.
        jitter_s: Uniform jitter of the stamps before the gaps between arrivals are measured, the same at every call;
            None: the step of stamps that most requests share with another (Mooncake's are 3 s apart), else none.

    Returns:
        `requests`, `rate_per_s` (0 where all come at once), `interarrival_cv`, percentiles `input_p10` …
        `output_p90`, the reuse of `describe`, and `found_share`: requests that find more than the trace's most
        frequent first block.
    """
    arrivals = np.array([r.timestamp_ms for r in records]) / 1000
    jitter_s = quantum_s(arrivals) if jitter_s is None else jitter_s
    jittered = np.sort(arrivals + np.random.default_rng(0).uniform(0, jitter_s, len(arrivals)))
    span = float(jittered[-1] - jittered[0])
    out = {
        "requests": float(len(records)),
        "rate_per_s": len(records) / span if span > 0 else 0.0,
        "interarrival_cv": interarrival_cv(jittered),
    }
    for name, lengths in (
        ("input", [r.input_length for r in records]),
        ("output", [r.output_length for r in records]),
    ):
        out |= {f"{name}_p{q}": float(np.percentile(lengths, q)) for q in QUANTILES}
        out[f"{name}_mean"] = float(np.mean(lengths))
    blocks = [np.array(r.hash_ids[: r.input_length // block_tokens], np.int64) for r in records]
    return {**out, **reuse(blocks, arrivals), "found_share": float(np.mean(found(blocks) > 1))}


def quantum_s(arrivals: NDArray[np.float64]) -> float:
    """Median step between different stamps where most requests share one, seconds; 0: the stamps are fine enough."""
    stamps = np.unique(arrivals)
    return float(np.median(np.diff(stamps))) if 1 < len(stamps) < len(arrivals) / 2 else 0.0


def prompt_blocks(workload: RequestList, page_tokens: int) -> list[NDArray[np.int64]]:
    """Ids of the full prompt blocks of every request."""
    return [r.hash_ids[: r.prompt_tokens // page_tokens] for r in workload.requests]


def interarrival_cv(arrivals: NDArray[np.float64]) -> float:
    """Coefficient of variation of the gaps between sorted times; 0 with fewer than two gaps."""
    gaps = np.diff(arrivals)
    return float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0 else 0.0


def found(blocks: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Blocks of every request that an earlier one had, (R,): what an infinite cache would find."""
    if not blocks:
        return np.zeros(0, np.int64)
    flat = np.concatenate(blocks)
    _, first = np.unique(flat, return_index=True)
    new = np.zeros(len(flat), np.int64)
    new[first] = 1
    edges = np.concatenate([[0], np.cumsum([len(b) for b in blocks])])
    total = np.concatenate([[0], np.cumsum(1 - new)])
    return total[edges[1:]] - total[edges[:-1]]


def reuse(blocks: Sequence[NDArray[np.int64]], arrivals: NDArray[np.float64]) -> dict[str, float]:
    """Reuse of blocks; equal ids imply equal prefixes, so a block seen before is a hit."""
    ids = np.concatenate([np.zeros(0, np.int64), *blocks])
    times = np.repeat(arrivals, [len(b) for b in blocks])
    if not len(ids):
        return {"prefix_hit_rate": 0.0, "once_share": 0.0, "gap_p50_s": 0.0, "gap_p90_s": 0.0}
    order = np.argsort(ids, kind="stable")  # stable: uses of a block stay in the order of time
    again = ids[order][1:] == ids[order][:-1]
    gaps = np.diff(times[order])[again]
    _, uses = np.unique(ids, return_counts=True)
    p50, p90 = np.percentile(gaps, [50, 90]) if len(gaps) else (0.0, 0.0)
    return {
        "prefix_hit_rate": 1 - len(uses) / len(ids),
        "once_share": float(np.mean(uses == 1)),
        "gap_p50_s": float(p50),
        "gap_p90_s": float(p90),
    }
