"""Telemetry of the interval just ended, written into the contract's arrays; the same code live and in traces.

`moving` columns: 0 prompt tokens arrived in this interval, 1 fast and 2 slow moving averages of them, 3 prefix-hit
rate, 4 re-reference gap in intervals, 5 share of prompt tokens found in the host.
"""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import GlobalControl, GlobalFeature, GroupControl, GroupFeature
from pikv_runtime.ledger.blocks import lookup
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import BF16, F4, F8, INT4, INT8, NATIVE, Ledger, Price, Status, Tally
from pikv_runtime.ledger.utility import decoding, window_start

LOOKED_UP = 4  # waiting requests whose prefix hits are looked up: bounds the cost of a long queue


@jit
def _log2(x: float) -> float:
    return np.log2(max(x, 2.0**-24))


@jit
def _gather_groups(s: Ledger, i: int, sums: F8) -> None:
    """Sum page facts by group into `sums` (N, 8): live pages by codec, mass, age, codec error, ghosts."""
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        for layer in range(s.layers):
            _add_pages(s, i, r, layer, sums)


@jit
def _add_pages(s: Ledger, i: int, r: int, layer: int, sums: F8) -> None:
    live, ghost, tags = s.page_live[i, r, layer], s.page_ghost[i, r, layer], s.page_tag[i, r, layer]
    codecs, mass = s.page_codec[i, r, layer], s.page_mass[i, r, layer]
    last, errors = s.page_last_s[i, r, layer], s.page_error[i, r, layer]
    offset, now = s.layer_group[layer], s.clock_s[i]
    for p in range(s.slot_pages[i, r]):
        if tags[p] < 0:
            continue
        g = tags[p] * s.layer_groups + offset
        if live[p] == 1:
            sums[g, codecs[p]] += 1.0
            sums[g, 4] += float(mass[p])
            sums[g, 5] += now - float(last[p])
            sums[g, 6] += float(errors[p])
        else:
            sums[g, 7] += ghost[p]


@jit
def _totals(s: Ledger, row: F8) -> tuple[float, float]:
    """Live pages and their bytes."""
    pages, stored = 0.0, 0.0
    for codec in range(s.codec_bytes.shape[0]):
        pages += row[codec]
        stored += row[codec] * s.codec_bytes[codec]
    return pages, stored


@jit
def _write_groups(s: Ledger, i: int, sums: F8, out: F4) -> None:
    cap = float(s.cap_bytes[i]) * s.ranks
    pages, mass = 1e-9, 1e-9
    for g in range(out.shape[0]):
        pages += _totals(s, sums[g])[0]
        mass += sums[g, 4]
    for g in range(out.shape[0]):
        row = sums[g]
        live, size = _totals(s, row)
        held, stored = max(live, 1.0), max(size, 1.0)
        out[g, GroupFeature.RESIDENT_SHARE] = min(1.0, size / cap)
        out[g, GroupFeature.NATIVE_SHARE] = row[NATIVE] * s.codec_bytes[NATIVE] / stored
        out[g, GroupFeature.TOP_SHARE] = row[BF16] * s.codec_bytes[BF16] / stored
        out[g, GroupFeature.INT8_SHARE] = row[INT8] * s.codec_bytes[INT8] / stored
        out[g, GroupFeature.INT4_SHARE] = row[INT4] * s.codec_bytes[INT4] / stored
        out[g, GroupFeature.TOKENS_SHARE] = live / pages
        out[g, GroupFeature.MASS_SHARE] = row[4] / mass
        density = (row[4] / mass) / (live / pages) if live > 0.0 else 1.0
        out[g, GroupFeature.MASS_DENSITY] = min(12.0, max(-12.0, _log2(density)))
        out[g, GroupFeature.ROUTING_SHARE] = s.group_routed[i, g // s.layer_groups]
        out[g, GroupFeature.RECENCY] = np.log1p(max(0.0, row[5] / s.interval_s[i] / held))
        wishes = s.group_wishes[i, g, 0]
        out[g, GroupFeature.MISS_RATE] = s.group_wishes[i, g, 1] / wishes if wishes > 0.0 else 0.0
        out[g, GroupFeature.GHOST_SHARE] = row[7] / max(1.0, live + row[7])
        out[g, GroupFeature.CODEC_ERROR] = min(2.0, row[6] / held)
        out[g, GroupFeature.MEAN_RATIO] = _log2(live * s.bf16_bytes / stored) if live > 0.0 else 0.0
        layers = max(1, s.layer_groups - 1)
        out[g, GroupFeature.LAYER_POSITION] = (g % s.layer_groups) / layers


@jit
def _evictable_bytes(s: Ledger, i: int, r: int, layer: int) -> float:
    """Sealed bytes of a layer outside slot `r`'s always-on set; shared pages count in parts."""
    live, codecs, refs = s.page_live[i, r, layer], s.page_codec[i, r, layer], s.page_refs[i, r, layer]
    total = 0.0
    for p in range(s.sink_pages, min(window_start(s, i, r), s.slot_sealed[i, r])):
        if live[p] == 1:
            size = s.codec_bytes[codecs[p]]
            total += size if refs[p] == 1 else size / refs[p]
    return total


@jit
def _write_space(s: Ledger, i: int, out: F4) -> None:
    """Bytes as shares of the cap."""
    cap = float(s.cap_bytes[i]) * s.ranks
    fullest, used = 0.0, 0.0
    for rank in range(s.ranks):
        used += s.bytes_rank[i, rank]
        fullest = max(fullest, float(s.bytes_rank[i, rank]) / s.cap_bytes[i])
    live, blocks = 0.0, 0
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        blocks += s.slot_pages[i, r]
        if decoding(s, i, r):
            for layer in range(s.layers):
                live += _evictable_bytes(s, i, r, layer)
    cached = float(s.cached_bytes[i].sum())
    out[GlobalFeature.PRESSURE] = fullest
    out[GlobalFeature.FREE_SHARE] = max(0.0, 1.0 - used / cap)
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
    out[GlobalFeature.PREEMPTIONS] = np.log1p(preempted)
    out[GlobalFeature.VETOES] = vetoed / asked if asked > 0.0 else 0.0


@jit
def _write_control(s: Ledger, i: int, out: F4) -> None:
    w = s.control_globals[i]
    groups = s.control_groups[i]
    ratio, evict = 0.0, 0.0
    for g in range(groups.shape[0]):
        ratio += groups[g, GroupControl.COMPRESSION_RATIO] / groups.shape[0]
        evict += groups[g, GroupControl.EVICT_FRACTION] / groups.shape[0]
    demotes = w[GlobalControl.DEMOTE_ON_PRESSURE] >= 0.5
    out[GlobalFeature.PREVIOUS_RATIO] = _log2(ratio)
    out[GlobalFeature.PREVIOUS_EVICT] = evict
    out[GlobalFeature.PREVIOUS_FAN_OUT] = w[GlobalControl.FAN_OUT]
    out[GlobalFeature.PREVIOUS_WINDOW] = w[GlobalControl.WINDOW] / 16.0
    out[GlobalFeature.PREVIOUS_CACHED_SHARE] = w[GlobalControl.CACHED_SHARE]
    out[GlobalFeature.PREVIOUS_CACHED_RATIO] = _log2(w[GlobalControl.CACHED_RATIO])
    out[GlobalFeature.PREVIOUS_R_PRESSURE] = _log2(w[GlobalControl.R_PRESSURE]) if demotes else 0.0


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
    sums = np.zeros((groups.shape[0], 8))
    _gather_groups(s, i, sums)
    _write_groups(s, i, sums, groups)
    _write_space(s, i, globals_)
    _write_queue(s, i, globals_)
    _write_flow(s, i, globals_)
    _write_control(s, i, globals_)
    _write_prices(s, i, globals_)
    _write_host(s, i, globals_)
    for g in range(groups.shape[0]):
        s.group_wishes[i, g, 0] = 0.0
        s.group_wishes[i, g, 1] = 0.0
    for k in range(s.tally.shape[1]):
        s.interval_tally[i, k] = s.tally[i, k]
