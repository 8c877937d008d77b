"""Telemetry of the interval just ended, written into the contract's arrays; the same code live and in traces.

`moving` columns: 0 prompt tokens arrived in this interval, 1 fast and 2 slow moving averages of them, 3 prefix-hit
rate, 4 re-reference gap in intervals, 5 share of prompt tokens found in the host.
"""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import GlobalControl, GlobalFeature, GroupControl, GroupFeature
from pikv_runtime.ledger.balance import count_load
from pikv_runtime.ledger.blocks import lookup
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pricing import count_reads
from pikv_runtime.ledger.state import F4, I8, NATIVE, Ledger, Price, Status, Tally
from pikv_runtime.ledger.sums import BYTE, SECOND, SHARE, GroupSum, part_of
from pikv_runtime.ledger.utility import decoding, window_start

LOOKED_UP = 4  # waiting requests whose prefix hits are looked up: bounds the cost of a long queue


@jit
def _log2(x: float) -> float:
    return np.log2(max(x, 2.0**-24))


@jit
def _totals(s: Ledger, sums: I8) -> tuple[int, int]:
    """Live pages of a group and their bytes."""
    pages, stored = 0, 0
    for codec in range(s.codec_bytes.shape[0]):
        pages += sums[codec]
        stored += sums[codec] * s.codec_bytes[codec]
    return pages, stored


@jit
def _write_groups(s: Ledger, i: int, out: F4) -> None:
    cap = float(s.cap_bytes[i]) * s.ranks
    pages, mass = 0, 0
    for g in range(out.shape[0]):
        pages += _totals(s, s.group_sums[i, g])[0]
        mass += s.group_sums[i, g, GroupSum.MASS]
    for g in range(out.shape[0]):
        sums = s.group_sums[i, g]
        live, size = _totals(s, sums)
        held, stored = max(live, 1), max(size, 1)
        out[g, GroupFeature.RESIDENT_SHARE] = min(1.0, size / cap)
        out[g, GroupFeature.NATIVE_SHARE] = sums[NATIVE] * s.codec_bytes[NATIVE] / stored
        out[g, GroupFeature.TOP_SHARE] = sums[s.top_codec] * s.codec_bytes[s.top_codec] / stored
        out[g, GroupFeature.TOKENS_SHARE] = live / max(pages, 1)
        density = sums[GroupSum.MASS] / max(mass, 1) / (live / pages) if live > 0 else 1.0
        out[g, GroupFeature.MASS_DENSITY] = min(12.0, max(-12.0, _log2(density)))
        out[g, GroupFeature.ROUTING_SHARE] = s.group_routed[i, g // s.layer_groups]
        age = (live * s.clock_s[i] - sums[GroupSum.LAST] / SECOND) / held
        out[g, GroupFeature.RECENCY] = np.log1p(max(0.0, age / s.interval_s[i]))
        wishes = s.group_wishes[i, g, 0]
        out[g, GroupFeature.MISS_RATE] = s.group_wishes[i, g, 1] / wishes if wishes > 0.0 else 0.0
        out[g, GroupFeature.GHOST_SHARE] = sums[GroupSum.GHOSTS] / max(1, live + sums[GroupSum.GHOSTS])
        out[g, GroupFeature.CODEC_ERROR] = min(2.0, sums[GroupSum.ERROR] / SHARE / held)
        out[g, GroupFeature.MEAN_RATIO] = _log2(live * s.bf16_bytes / stored) if live > 0 else 0.0
        layers = max(1, s.layer_groups - 1)
        out[g, GroupFeature.LAYER_POSITION] = (g % s.layer_groups) / layers


@jit
def _evictable_parts(s: Ledger, i: int, r: int) -> int:
    """Sealed bytes outside slot `r`'s always-on set, 2^-16; shared pages count in parts."""
    if s.slot_dirty[i, r] == 1:
        count_reads(s, i, r)
    parts = s.slot_parts[i, r]
    for p in range(max(s.sink_pages, s.slot_sealed[i, r]), window_start(s, i, r)):  # left the window, not sealed yet
        for layer in range(s.layers):
            if s.page_live[i, r, layer, p] == 1:
                parts -= part_of(s, s.page_codec[i, r, layer, p], s.page_refs[i, r, layer, p])
    return parts


@jit
def _write_space(s: Ledger, i: int, out: F4) -> None:
    """Bytes as shares of the cap."""
    cap = float(s.cap_bytes[i]) * s.ranks
    fullest, used = 0.0, 0.0
    for rank in range(s.ranks):
        used += s.bytes_rank[i, rank]
        fullest = max(fullest, float(s.bytes_rank[i, rank]) / s.cap_bytes[i])
    parts, blocks = 0, 0
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        blocks += s.slot_pages[i, r]
        if decoding(s, i, r):
            parts += _evictable_parts(s, i, r)
    live = parts / BYTE
    cached = float(s.cached_bytes[i].sum())
    out[GlobalFeature.PRESSURE] = fullest
    out[GlobalFeature.CACHED_SHARE] = cached / cap
    out[GlobalFeature.LIVE_SHARE] = min(1.0, live / cap)
    out[GlobalFeature.PINNED_SHARE] = min(1.0, max(0.0, used - cached - live) / cap)
    out[GlobalFeature.WHOLE_BLOCK_SHARE] = s.whole_listed[i] / max(1, blocks)


@jit
def _write_queue(s: Ledger, i: int, out: F4) -> None:
    running, prefilling, second = 0, 0, 0
    slots = s.slot_request.shape[1]
    for r in range(slots):
        if s.slot_request[i, r] >= 0:
            running += 1
            prefilling += 0 if decoding(s, i, r) else 1
            second += 1 if s.req_class[i, s.slot_request[i, r]] == 1 else 0
    waiting, tokens, looked, hits, age = 0, 0.0, 0.0, 0.0, 0.0
    for q in range(s.queue_head[i], s.next_arrival[i]):
        if s.req_status[i, q] != Status.WAITING:
            continue
        if waiting == 0:
            age = (s.clock_s[i] - s.req_arrival_s[i, q]) / s.class_ttft_s[i, s.req_class[i, q]]
        if waiting < LOOKED_UP:
            looked += s.req_prompt[i, q]
            hits += lookup(s, i, q) * s.page_tokens
        waiting += 1
        tokens += s.req_prompt[i, q]
    cap = float(s.cap_bytes[i]) * s.ranks
    queued = tokens / s.page_tokens * s.layers * s.codec_bytes[NATIVE]
    out[GlobalFeature.RUNNING_SHARE] = running / slots
    out[GlobalFeature.PREFILLING_SHARE] = prefilling / slots
    out[GlobalFeature.QUEUED_REQUESTS] = np.log1p(waiting)
    out[GlobalFeature.QUEUED_PROMPT] = np.log1p(queued / cap)
    out[GlobalFeature.QUEUED_HITS] = hits / looked if looked > 0.0 else 0.0
    out[GlobalFeature.QUEUE_AGE] = np.log1p(max(0.0, age))
    out[GlobalFeature.CLASS1_SHARE] = second / max(1, running)


@jit
def _low_hit(s: Ledger, i: int) -> float:
    """Share of tokens that the gate sends to groups most of whose wished pages are ghosts."""
    share = 0.0
    for g in range(s.group_wishes.shape[1]):
        if s.group_wishes[i, g, 1] > 0.5 * s.group_wishes[i, g, 0]:
            share += s.group_routed[i, g // s.layer_groups] / s.layer_groups
    return min(1.0, share)


@jit
def _write_flow(s: Ledger, i: int, out: F4) -> None:
    """Arrivals, hits, losses and the counters of the interval."""
    arrived = s.moving[i, 0] / s.interval_s[i]
    s.moving[i, 0] = 0.0
    s.moving[i, 1] += 0.3 * (arrived - s.moving[i, 1])
    s.moving[i, 2] += 0.03 * (arrived - s.moving[i, 2])
    load = s.moving[i, 1] * s.prices[i, Price.PREFILL_TOKEN]
    trend = _log2(s.moving[i, 1] + 1e-3) - _log2(s.moving[i, 2] + 1e-3)
    out[GlobalFeature.ARRIVAL_LOAD] = min(16.0, load)
    out[GlobalFeature.ARRIVAL_TREND] = min(8.0, max(-8.0, trend))
    out[GlobalFeature.PREFIX_HIT_RATE] = min(1.0, max(0.0, s.moving[i, 3]))
    out[GlobalFeature.REUSE_GAP] = np.log1p(max(0.0, s.moving[i, 4]))
    for c in range(2):
        audited = s.loss_class[i, c, 1]
        out[GlobalFeature.LOSS_CLASS0 + c] = s.loss_class[i, c, 0] / audited if audited > 0.0 else 0.0
    preempted = s.tally[i, Tally.PREEMPTIONS] - s.interval_tally[i, Tally.PREEMPTIONS]
    asked = s.tally[i, Tally.ASKED] - s.interval_tally[i, Tally.ASKED]
    vetoed = s.tally[i, Tally.VETOES] - s.interval_tally[i, Tally.VETOES]
    wished = s.tally[i, Tally.WISHED_PAGES] - s.interval_tally[i, Tally.WISHED_PAGES]
    conflicts = s.tally[i, Tally.CONFLICTS] - s.interval_tally[i, Tally.CONFLICTS]
    out[GlobalFeature.PREEMPTIONS] = np.log1p(preempted)
    out[GlobalFeature.CONFLICT_RATE] = conflicts / wished if wished > 0.0 else 0.0
    out[GlobalFeature.LOW_HIT_SHARE] = _low_hit(s, i)
    out[GlobalFeature.VETOES] = vetoed / asked if asked > 0.0 else 0.0


@jit
def _write_control(s: Ledger, i: int, out: F4) -> None:
    w = s.control_globals[i]
    groups = s.control_groups[i]
    ratio, evict = 0.0, 0.0
    for g in range(groups.shape[0]):
        ratio += groups[g, GroupControl.COMPRESSION_RATIO] / groups.shape[0]
        evict += groups[g, GroupControl.EVICT_FRACTION] / groups.shape[0]
    out[GlobalFeature.PREVIOUS_RATIO] = _log2(ratio)
    out[GlobalFeature.PREVIOUS_EVICT] = evict
    out[GlobalFeature.PREVIOUS_FAN_OUT] = w[GlobalControl.FAN_OUT]
    out[GlobalFeature.PREVIOUS_WINDOW] = w[GlobalControl.WINDOW] / 16.0
    out[GlobalFeature.PREVIOUS_CACHED_SHARE] = w[GlobalControl.CACHED_SHARE]
    out[GlobalFeature.PREVIOUS_CACHED_RATIO] = _log2(w[GlobalControl.CACHED_RATIO])
    out[GlobalFeature.PREVIOUS_R_PRESSURE] = _log2(w[GlobalControl.R_PRESSURE])


@jit
def _write_prices(s: Ledger, i: int, out: F4) -> None:
    step = max(s.prices[i, Price.STEP], 1e-12)
    link = s.prices[i, Price.LINK_BYTE] * s.codec_bytes[s.top_codec] if s.ranks > 1 else 0.0
    out[GlobalFeature.INTERVAL] = _log2(s.interval_s[i])
    out[GlobalFeature.PRICE_PREFILL] = _log2(s.prices[i, Price.PREFILL_TOKEN] / step)
    out[GlobalFeature.PRICE_ATTENTION] = _log2(s.prices[i, Price.READ_NATIVE + s.top_codec] / step)
    out[GlobalFeature.PRICE_CODEC] = _log2(s.prices[i, Price.ENCODE_PAGE] / step)
    out[GlobalFeature.PRICE_LINK] = _log2(link / step)
    out[GlobalFeature.LAMBDA1] = _log2(s.lambdas[i, 0])
    out[GlobalFeature.LAMBDA2] = _log2(s.lambdas[i, 1])


@jit
def _write_host(s: Ledger, i: int, out: F4) -> None:
    step, held = max(s.prices[i, Price.STEP], 1e-12), 0.0
    for rank in range(s.ranks):
        held += s.host_bytes[i, rank]
    tier = s.host_cap[i] > 0
    page_s = s.prices[i, Price.HOST_BYTE] * s.codec_bytes[s.top_codec] if tier else 0.0
    out[GlobalFeature.HOST_SHARE] = held / (float(s.host_cap[i]) * s.ranks) if tier else 0.0
    out[GlobalFeature.HOST_HIT_RATE] = min(1.0, max(0.0, s.moving[i, 5]))
    out[GlobalFeature.PRICE_HOST] = _log2(page_s / step)


@jit
def write_telemetry(s: Ledger, i: int, groups: F4, globals_: F4) -> None:
    """Write the telemetry of the interval just ended into `groups` (N, F) and `globals_` (F,); start a new one."""
    _write_groups(s, i, groups)
    _write_space(s, i, globals_)
    _write_queue(s, i, globals_)
    _write_flow(s, i, globals_)
    _write_control(s, i, globals_)
    _write_prices(s, i, globals_)
    _write_host(s, i, globals_)
    count_load(s, i)
    for g in range(groups.shape[0]):
        s.group_wishes[i, g, 0] = 0.0
        s.group_wishes[i, g, 1] = 0.0
    for k in range(s.tally.shape[1]):
        s.interval_tally[i, k] = s.tally[i, k]
