"""Observations: attention mass of one request at one decode step becomes telemetry and, if audited, fidelity.

No leak: averages change only for pages that were read, relative to what was read; an unread page's average is held.
"""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import GlobalControl, GroupControl
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.prefetch import fetch, fetch_pages
from pikv_runtime.ledger.readset import choose, takes_all
from pikv_runtime.ledger.state import F4, F8, I1, I8, Ledger, Tally
from pikv_runtime.ledger.sums import GroupSum, to_moment, to_share
from pikv_runtime.ledger.utility import decoding, window_start

CONFLICT_WINDOW_S = 60.0
MASS_RATE = 0.3  # weight of a new observation in a page's attention-mass average


@jit
def observed_step(s: Ledger, i: int, q: int, o: int) -> int:
    """The decode step of request `q` that observation `o` looks at: one of `observe_tokens`, drawn by hash. Known
    steps would be an invitation to evict right after them."""
    if s.observe_drawn == 0:
        return o * s.observe_tokens
    x = (q * 2654435761 + o * 2246822519 + s.observe_salt[i] + 374761393) & 0xFFFFFFFF
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
def _update_mass(s: Ledger, i: int, r: int, layer: int, read: I1, mass: F4, captured: float, count: int) -> None:
    """Averages of the pages that were read, relative to a uniform spread over them."""
    average, total = s.page_mass[i, r, layer], s.page_mass_sum[i, r, layer]
    reads, last, tags = s.page_reads[i, r, layer], s.page_last_s[i, r, layer], s.page_tag[i, r, layer]
    now, scale, offset = float(np.float32(s.clock_s[i])), count / captured, s.layer_group[layer]
    moment = to_moment(now)
    for p in range(s.slot_pages[i, r]):
        if read[p] == 1:
            relative, before, seen = float(mass[p]) * scale, float(average[p]), float(last[p])
            average[p] = before + MASS_RATE * (relative - before)
            total[p] = float(total[p]) + relative
            reads[p] += 1.0
            last[p] = now
            if tags[p] >= 0:
                g = tags[p] * s.layer_groups + offset
                s.group_sums[i, g, GroupSum.MASS] += to_share(float(average[p])) - to_share(before)
                s.group_sums[i, g, GroupSum.LAST] += moment - to_moment(seen)


@jit
def _count_wishes(s: Ledger, i: int, r: int, layer: int, wished: I1, mass: F4, audited: bool) -> None:
    """Count what was wished for, what of it is gone, and, where the mass of gone pages is known, their mass."""
    live, tags, gone_s = s.page_live[i, r, layer], s.page_tag[i, r, layer], s.page_gone_s[i, r, layer]
    wishes, ghosts, conflicts, wished_mass, hit_mass = 0, 0, 0, 0.0, 0.0
    for p in range(s.sink_pages, window_start(s, i, r)):
        if wished[p] == 0:
            continue
        wishes += 1
        wished_mass += float(mass[p])
        if live[p] == 1:
            hit_mass += float(mass[p])
        else:
            ghosts += 1
            conflicts += 1 if s.clock_s[i] - float(gone_s[p]) <= CONFLICT_WINDOW_S else 0
        if tags[p] >= 0:
            group = tags[p] * s.layer_groups + s.layer_group[layer]
            s.group_wishes[i, group, 0] += 1.0
            if live[p] == 0:
                s.group_wishes[i, group, 1] += 1.0
    s.tally[i, Tally.WISHED_PAGES] += wishes
    s.tally[i, Tally.GHOST_WISHES] += ghosts
    s.tally[i, Tally.CONFLICTS] += conflicts
    if audited:
        s.tally[i, Tally.WISHED_MASS] += wished_mass
        s.tally[i, Tally.HIT_MASS] += hit_mass


@jit
def _layer_loss(s: Ledger, i: int, r: int, layer: int, read: I1, mass: F4, captured: float) -> float:
    """An audited layer's fidelity loss: missed mass + Σ mass · codec error of what is read, at most 1."""
    errors, lost = s.page_error[i, r, layer], max(0.0, 1.0 - captured)
    for p in range(s.slot_pages[i, r]):
        if read[p] == 1:
            lost += np.float64(mass[p]) * errors[p]
    return min(1.0, lost)


@jit
def observe(s: Ledger, i: int, r: int, mass: F4, score: F4) -> None:
    """Observe slot `r`: `mass` and `score` are (L, P).

    For an audited request `mass` is exact (sums to 1 over all its pages, gone ones included); for others only its
    values on pages that are read matter.
    """
    q, pages = s.slot_request[i, r], s.page_block.shape[2]
    read, wished, bias = np.empty(pages, np.int8), np.empty(pages, np.int8), np.empty(pages, np.float32)
    values, ids = np.empty(pages, np.float64), np.empty(pages, np.int64)
    audited, loss = s.req_audited[i, q] == 1, 0.0
    fetch_pages(s, i, r)
    for layer in range(s.layers):
        fetch(mass[layer], s.slot_pages[i, r])
    for layer in range(s.layers):
        seen = mass[layer]
        _write_masks(s, i, r, layer, score[layer], read, wished, bias, values, ids)
        captured, count = 0.0, 0
        for p in range(s.slot_pages[i, r]):
            captured += float(seen[p]) * read[p]
            count += read[p]
        if captured > 0.0:
            _update_mass(s, i, r, layer, read, seen, captured, count)
        _count_wishes(s, i, r, layer, wished, seen, audited)
        if audited:
            loss += _layer_loss(s, i, r, layer, read, seen, captured)
    s.req_observed[i, q] += 1
    if audited:
        c = s.req_class[i, q]
        s.req_loss[i, q] += loss
        s.tally[i, Tally.LOSS] += s.class_fidelity[i, c] * loss
