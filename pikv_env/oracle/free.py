"""A bound that holds whoever is admitted when: what every request must pay if it had the machine to itself."""

from __future__ import annotations

import math

import numpy as np

from pikv_env.pool import WorkloadPool
from pikv_runtime.ledger.state import NATIVE, Price


def free_bound(pool: WorkloadPool, workload: int, pressure: float, lambdas: tuple[float, float]) -> float:
    """Least J of any run of a pool's workload, admission and preemption free.

    A request computes at least the prompt tokens that nobody before it had, in iterations that take at least their
    start, its own row and its open page; it holds that page; nothing is lost. No request waits for another, so the
    bound is loose where there are queues (docs/oracle.md).
    """
    s, prepared, prices = pool.store, pool.prepared[workload], pool.prices
    cap = max(prepared.floor_bytes, int(prepared.working_set_bytes / pressure / pool.config.ranks))
    start = prices[Price.STEP] + (2.0 * s.layers * prices[Price.COLLECTIVE] if pool.config.ranks > 1 else 0.0)
    step = start + prices[Price.DECODE_TOKEN] + s.layers * prices[Price.READ_NATIVE]
    seen: set[int] = set()
    charge = seconds = 0.0
    for q, request in enumerate(prepared.workload.requests):
        fresh = request.prompt_tokens - _known(request.hash_ids, request.prompt_tokens, seen, s.page_tokens)
        seen.update(request.hash_ids.tolist())
        known = request.prompt_tokens - fresh
        ttft = math.ceil(fresh / s.max_batch_tokens) * start + fresh * prices[Price.PREFILL_TOKEN]
        ttft += fresh * (known + 0.5 * fresh) * prices[Price.PREFILL_PAIR]
        steps = request.output_tokens - 1
        c = int(s.req_class[workload, q])
        weight = float(s.class_weight[workload, c])
        charge += weight * ttft / float(s.class_ttft_s[workload, c])
        charge += weight * step * (steps > 0) / float(s.class_tpot_s[workload, c])
        seconds += ttft + steps * step
    held = seconds * s.layers * float(s.codec_bytes[NATIVE])
    reference = prepared.reference
    return charge / reference.latency + lambdas[0] * held / (cap * pool.config.ranks * reference.duration_s)


def _known(hashes: np.ndarray, prompt: int, seen: set[int], page_tokens: int) -> int:
    """Leading prompt tokens whose blocks an earlier request may have left."""
    count = 0
    while count < min((prompt - 1) // page_tokens, len(hashes)) and int(hashes[count]) in seen:
        count += 1
    return count * page_tokens
