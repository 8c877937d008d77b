"""Statistics of a workload, before any cache has seen it."""

from __future__ import annotations

import numpy as np

from pikv_runtime.requests import RequestList


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
    arrivals = np.array([r.arrival_s for r in requests])
    gaps = np.diff(arrivals)
    out = {
        "requests": float(len(requests)),
        "rate_per_s": len(requests) / workload.horizon_s,
        "prompt_tokens": float(np.mean([r.prompt_tokens for r in requests])) if requests else 0.0,
        "output_tokens": float(np.mean([r.output_tokens for r in requests])) if requests else 0.0,
        "interarrival_cv": float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0 else 0.0,
        "batch_share": float(np.mean([r.class_id == 1 for r in requests])) if requests else 0.0,
    }
    return {**out, **_reuse(workload, arrivals, page_tokens)}


def _reuse(workload: RequestList, arrivals: np.ndarray, page_tokens: int) -> dict[str, float]:
    """Reuse of full prompt blocks; equal ids imply equal prefixes, so a block seen before is a hit."""
    prompts = [r.hash_ids[: r.prompt_tokens // page_tokens] for r in workload.requests]
    ids = np.concatenate([np.zeros(0, np.int64), *prompts])
    times = np.repeat(arrivals, [len(p) for p in prompts])
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
