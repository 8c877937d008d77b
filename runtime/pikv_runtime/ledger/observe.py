"""Observations: attention mass of one request at one decode step becomes telemetry and, if audited, fidelity.

No leak: averages change only for pages that were read, relative to what was read; an unread page's average is held.
"""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import GlobalControl, GroupControl
from pikv_runtime.ledger.averages import add_to_groups, captured_by, update_average, update_reads, update_total
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.prefetch import fetch, fetch_pages
from pikv_runtime.ledger.readset import choose, takes_all
from pikv_runtime.ledger.state import F4, F8, I1, I8, Ledger, Tally
from pikv_runtime.ledger.utility import decoding, window_start

CONFLICT_WINDOW_S = 60.0


@jit
def observed_step(s: Ledger, i: int, q: int, o: int) -> int:
    """The decode step of request `q` that observation `o` looks at: one of `observe_tokens`, drawn by hash. Known
    steps would be an invitation to evict right after them."""
    if s.observe_drawn == 0:
        return o * s.observe_tokens
    # int: uncompiled, 32-bit numbers would overflow
    x = (int(q) * 2654435761 + int(o) * 2246822519 + int(s.observe_salt[i]) + 374761393) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 2246822519) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 3266489917) & 0xFFFFFFFF
    return o * s.observe_tokens + (x ^ (x >> 16)) % s.observe_tokens


@jit
def due(s: Ledger, i: int, r: int) -> int:
    """Number of the observation due in the planned iteration for slot `r`, or -1."""
    if s.slot_plan[i, r] == 0 or not decoding(s, i, r):
        return -1
    q = s.slot_request[i, r]
    step = s.req_generated[i, q] - 1
    o = step // s.observe_tokens
    return o if step == observed_step(s, i, q, o) else -1


@jit
def steps_to_observation(s: Ledger, i: int, q: int) -> int:
    """Decode steps before the next observation of request `q`; 0 if the next step is observed."""
    step = s.req_generated[i, q] - 1
    o = step // s.observe_tokens
    ahead = observed_step(s, i, q, o) - step
    return ahead if ahead >= 0 else observed_step(s, i, q, o + 1) - step


@jit
def read_masks(s: Ledger, i: int, r: int, layer: int, score: F4) -> tuple[I1, I1]:
    """(read, wished) of slot `r` in `layer`, each (P,); `read` includes the always-on set."""
    pages = s.page_block.shape[2]
    read, wished, bias = np.zeros(pages, np.int8), np.zeros(pages, np.int8), np.empty(pages, np.float32)
    _write_masks(s, i, r, layer, score, read, wished, bias, np.empty(pages, np.float64), np.empty(pages, np.int64))
    return read, wished


@jit
def _write_masks(
    s: Ledger, i: int, r: int, layer: int, score: F4, read: I1, wished: I1, bias: F4, values: F8, ids: I8
) -> None:
    """Write `read` and `wished` for the pages that slot `r` has; `bias`, `values` and `ids` (P,) are scratch."""
    live, ghost, recent = s.page_live[i, r, layer], s.page_ghost[i, r, layer], window_start(s, i, r)
    fan_out = s.control_globals[i, GlobalControl.FAN_OUT] if s.sparse == 1 else 1.0
    chosen = not takes_all(live, ghost, fan_out, s.sink_pages, recent)
    for p in range(s.slot_pages[i, r]):
        read[p], wished[p] = live[p], 0
    for p in range(s.sink_pages, recent):
        if chosen:
            read[p] = 0
        else:
            wished[p] = live[p] | ghost[p]
    if chosen:
        _write_bias(s, i, r, layer, bias)
        choose(score, live, ghost, bias, fan_out, s.sink_pages, recent, read, wished, values, ids)


@jit
def _write_bias(s: Ledger, i: int, r: int, layer: int, bias: F4) -> None:
    """The policy's routing bias of each page outside the always-on set."""
    tags = s.page_tag[i, r, layer]
    for p in range(s.sink_pages, window_start(s, i, r)):
        bias[p] = 0.0
        if tags[p] >= 0:
            group = tags[p] * s.layer_groups + s.layer_group[layer]
            bias[p] = s.control_groups[i, group, GroupControl.ROUTING_BIAS]


@jit
def _count_wishes(s: Ledger, i: int, r: int, layer: int, wished: I1) -> None:
    """Count what was wished for, and what of it is gone."""
    live, tags, gone_s = s.page_live[i, r, layer], s.page_tag[i, r, layer], s.page_gone_s[i, r, layer]
    groups, offset, wishes, ghosts = s.layer_groups, s.layer_group[layer], 0, 0
    for p in range(wished.shape[0]):
        wishes += wished[p]
        ghosts += wished[p] & (1 - live[p])
        if tags[p] >= 0:
            s.group_wishes[i, tags[p] * groups + offset, 0] += wished[p]
    s.tally[i, Tally.WISHED_PAGES] += wishes
    s.tally[i, Tally.GHOST_WISHES] += ghosts
    for p in range(wished.shape[0] if ghosts > 0 else 0):
        if wished[p] == 1 and live[p] == 0:
            s.tally[i, Tally.CONFLICTS] += 1 if s.clock_s[i] - float(gone_s[p]) <= CONFLICT_WINDOW_S else 0
            if tags[p] >= 0:
                s.group_wishes[i, tags[p] * groups + offset, 1] += 1.0


@jit
def _audit_layer(s: Ledger, i: int, r: int, layer: int, read: I1, wished: I1, mass: F4, captured: float) -> float:
    """Count the attention mass of wished pages, and of those the resident ones. Returns the layer's fidelity loss:
    missed mass + Σ mass · codec error of what is read, at most 1."""
    live, errors = s.page_live[i, r, layer], s.page_error[i, r, layer]
    wished_mass, hit_mass, lost = 0.0, 0.0, max(0.0, 1.0 - captured)
    for p in range(read.shape[0]):
        here = np.float64(mass[p])  # compiled, float() would leave it 32 bits wide
        lost += here * errors[p] * read[p]
        wished_mass += here * wished[p]
        hit_mass += here * (wished[p] & live[p])
    s.tally[i, Tally.WISHED_MASS] += wished_mass
    s.tally[i, Tally.HIT_MASS] += hit_mass
    return min(1.0, lost)


@jit
def observe(s: Ledger, i: int, r: int, mass: F4, score: F4) -> None:
    """Observe slot `r`: `mass` and `score` are (L, P).

    For an audited request `mass` is exact (sums to 1 over all its pages, gone ones included); for others only its
    values on pages that are read matter.
    """
    q, pages = s.slot_request[i, r], s.slot_pages[i, r]
    read, wished, bias = np.empty(pages, np.int8), np.empty(pages, np.int8), np.empty(pages, np.float32)
    values, ids = np.empty(pages, np.float64), np.empty(pages, np.int64)
    gained, passed = np.empty(pages, np.float64), np.empty(pages, np.float64)
    audited, loss, now = s.req_audited[i, q] == 1, 0.0, float(np.float32(s.clock_s[i]))
    fetch_pages(s, i, r)
    for layer in range(s.layers):
        fetch(mass[layer], pages)
    for layer in range(s.layers):
        seen = mass[layer]
        _write_masks(s, i, r, layer, score[layer], read, wished, bias, values, ids)
        captured, count = captured_by(read, seen)
        if captured > 0.0:
            scale = count / captured
            update_average(read, seen, scale, s.page_mass[i, r, layer], gained)
            update_total(read, seen, scale, s.page_mass_sum[i, r, layer])
            update_reads(read, now, s.page_reads[i, r, layer], s.page_last_s[i, r, layer], passed)
            add_to_groups(s, i, r, layer, gained, passed)
        _count_wishes(s, i, r, layer, wished)
        if audited:
            loss += _audit_layer(s, i, r, layer, read, wished, seen, captured)
    s.req_observed[i, q] += 1
    if audited:
        c = s.req_class[i, q]
        s.req_loss[i, q] += loss
        s.tally[i, Tally.LOSS] += s.class_fidelity[i, c] * loss
