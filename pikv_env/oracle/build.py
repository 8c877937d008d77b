"""The fixed-timeline problem of one workload of a pool under one cap, on a given timeline."""

from __future__ import annotations

from typing import Any

import numpy as np

from pikv_env.oracle.problem import GONE, STATES, Problem
from pikv_env.oracle.stages import Stages, grid_of
from pikv_env.oracle.timeline import Timeline
from pikv_env.oracle.uses import Block, Paging, lay_out
from pikv_env.pool import WorkloadPool
from pikv_runtime.ledger.state import F8, I8, NATIVE, Ledger, Price

LEAST_WINDOW = 1
"""The least window that a control may ask; wider ones only forbid more."""


def build_problem(
    pool: WorkloadPool,
    workload: int,
    timeline: Timeline,
    cap_bytes: int,
    lambdas: tuple[float, float],
    window: int = LEAST_WINDOW,
) -> Problem:
    """The problem of `timeline` under `cap_bytes` on each rank.

    Raises:
        ValueError: the pool has a host tier, which the problem knows nothing of; homes that depend on the run; or other
            codecs than four.
    """
    if pool.config.runtime.shard_map.partition(":")[0] in ("load_aware", "shard_eplb"):
        raise ValueError(f"shard_map={pool.config.runtime.shard_map!r}: the oracle needs homes that are known ahead")
    if pool.config.host > 0 or pool.config.runtime.host_bytes:
        raise ValueError(f"host={pool.config.host}: the oracle knows no host tier, only host=0")
    s, reference = pool.store, pool.prepared[workload].reference
    requests = pool.prepared[workload].workload
    paging = Paging(s.page_tokens, s.sink_pages, window)
    blocks, found = lay_out(timeline, requests, paging)
    prices, latency = pool.prices, reference.latency
    depths = np.arange(pool.pages)
    pairs = s.page_tokens * (s.page_tokens * depths + 0.5 * s.page_tokens)
    stages = Stages(
        timeline,
        grid_of(timeline.start_s, float(s.interval_s[workload])),
        s.page_tokens * prices[Price.PREFILL_TOKEN] + pairs * prices[Price.PREFILL_PAIR],
    )
    for block in blocks:
        stages.add(block)
    parts = _iterations(pool, timeline, found, latency)
    cap = np.full((pool.config.ranks, len(timeline.start_s)), cap_bytes, np.int64)
    return Problem(
        **parts,
        cap=cap,
        constant=_constant(pool, workload, timeline, parts, lambdas[1]),
        memory=lambdas[0] / (cap_bytes * pool.config.ranks * reference.duration_s),
        **_prices(s, prices, pool.config.ranks),
        **_texts(pool, blocks),
        **stages.arrays(),
        **_visits(pool, workload, timeline, lambdas[1]),
        page_bytes_floor=0.0,
    )


def _prices(s: Ledger, prices: F8, ranks: int) -> dict[str, Any]:
    """Bytes and seconds by state."""
    top, size = s.top_codec, len(STATES)
    codecs = [NATIVE, top, 2, 3]
    state_bytes, read = np.zeros(size, np.int64), np.zeros(size)
    state_bytes[:GONE] = [int(s.codec_bytes[codec]) for codec in codecs]
    read[:GONE] = [prices[Price.READ_NATIVE + codec] for codec in codecs]
    moves = float(s.codec_bytes[top]) * prices[Price.LINK_BYTE] / ranks
    return {
        "state_bytes": state_bytes,
        "state_read_s": read,
        "select_s": float(prices[Price.SELECT_PAGE]) if s.sparse == 1 else np.inf,
        "encode_s": float(prices[Price.ENCODE_PAGE]) / ranks,
        "move_s": moves if ranks > 1 else 0.0,
    }


def _texts(pool: WorkloadPool, blocks: list[Block]) -> dict[str, Any]:
    """What lies in the blocks: homes by tag, codec errors."""
    s, bank = pool.store, pool.bank
    depth = np.array([block.depth for block in blocks], np.int32)
    content = np.array([block.content for block in blocks], np.int64)
    known = content >= 0
    tags = np.where(known[:, None], bank.tags[np.maximum(content, 0), :, depth], -1)
    codec_errors = bank.errors[np.maximum(content, 0), depth] * known[:, None, None]  # (B, L, codecs)
    errors = np.zeros((len(blocks), s.layers, len(STATES)), np.float32)
    errors[..., :GONE] = np.minimum(1.0, codec_errors[..., [NATIVE, s.top_codec, 2, 3]])
    errors[..., GONE] = 1.0
    homes = s.shard_map[depth[:, None] % s.ranks, tags, s.layer_group[None]]  # untagged (-1): the last row
    return {
        "depth": depth,
        "chain": np.array([block.chain for block in blocks], np.int32),
        "home": np.maximum(homes, 0),
        "errors": errors,
    }


def _iterations(pool: WorkloadPool, timeline: Timeline, found: I8, latency: float) -> dict[str, Any]:
    """Clock and compulsory work of every iteration: steps, decode rows, prompts that nobody had computed before."""
    prices, count, tokens = pool.prices, len(timeline.start_s), pool.config.runtime.page_tokens
    base = np.zeros((pool.config.ranks, count))
    for v, visit in enumerate(timeline.visits):
        base[visit.owner, visit.decoding : visit.ended] += prices[Price.DECODE_TOKEN]
        prompt = visit.tokens[: visit.decoding - visit.admitted]
        after = np.append(prompt[1:], visit.target if visit.ended > visit.admitted + len(prompt) - 1 else prompt[-1:])
        low = np.maximum(prompt, found[v] * tokens)  # what could have been found is no compulsory work
        fresh = np.maximum(0, after - low)
        seconds = fresh * prices[Price.PREFILL_TOKEN] + fresh * (low + 0.5 * fresh) * prices[Price.PREFILL_PAIR]
        base[visit.owner, visit.admitted : visit.admitted + len(prompt)] += seconds
    return {
        "start_s": timeline.start_s,
        "end_s": timeline.end_s,
        "rho": timeline.rate / latency,
        "fixed_s": prices[Price.STEP] + timeline.link_s,
        "base_s": base,
    }


def _constant(pool: WorkloadPool, j: int, timeline: Timeline, parts: dict[str, Any], lambda2: float) -> float:
    """Waiting outside of iterations, and what is lost with decode steps that were never given."""
    spent = float((timeline.rate * (timeline.end_s - timeline.start_s)).sum())
    outside = (timeline.latency - spent) / pool.prepared[j].reference.latency
    weights, steps = _fidelity(pool, j)
    lost = float((weights * timeline.unserved).sum() / max(1e-300, (weights * steps).sum()))
    return outside + lambda2 * lost


def _fidelity(pool: WorkloadPool, j: int) -> tuple[F8, I8]:
    """Class weight and decode steps of every request, (N,)."""
    s = pool.store
    n = int(s.num_requests[j])
    weights: F8 = np.array(s.class_fidelity[j])[np.array(s.req_class[j, :n], np.int64)]
    return weights, np.array(s.req_output[j, :n], np.int64) - 1


def _visits(pool: WorkloadPool, j: int, timeline: Timeline, lambda2: float) -> dict[str, Any]:
    """Visits, and what a unit of attention mass that one of their decode steps loses in a layer costs."""
    weights, steps = _fidelity(pool, j)
    total = float((weights * steps).sum()) * pool.store.layers
    requests = pool.prepared[j].workload.requests
    q = np.array([visit.request for visit in timeline.visits], np.int64)
    prompt = np.array([requests[one].prompt_tokens for one in q], np.int64)
    target = np.array([visit.target for visit in timeline.visits], np.int64)
    content = np.array([requests[one].content for one in q], np.int32)
    return {
        "visit_content": content,
        "visit_weight": np.where(content >= 0, lambda2 * weights[q] / max(total, 1e-300), 0.0),
        "visit_decode": np.array([visit.decoding for visit in timeline.visits], np.int32),
        "visit_step": (target - prompt).astype(np.int32),
        "visit_owner": np.array([visit.owner for visit in timeline.visits], np.int8),
        "visit_admitted": np.array([visit.admitted for visit in timeline.visits], np.int32),
        "mass": pool.bank.mass,
        "observe_tokens": int(pool.config.runtime.observe_tokens),
    }
