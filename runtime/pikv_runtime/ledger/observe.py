"""Observations: attention mass of one request at one decode step becomes telemetry and, if audited, fidelity.

No leak: averages change only for pages that were read, relative to what was read; an unread page's average is held.
"""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import GlobalControl, GroupControl
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.readset import select
from pikv_runtime.ledger.state import F4, I1, Ledger, Tally
from pikv_runtime.ledger.utility import decoding, window_start

CONFLICT_WINDOW_S = 60.0
MASS_RATE = 0.3  # weight of a new observation in a page's attention-mass average


@jit
def due(s: Ledger, i: int, r: int) -> int:
    """Number of the observation due in the planned iteration for slot `r`, or -1."""
    if s.slot_plan[i, r] == 0 or not decoding(s, i, r):
        return -1
    step = s.req_generated[i, s.slot_request[i, r]] - 1
    if step % s.observe_tokens != 0:
        return -1
    return step // s.observe_tokens


@jit
def read_masks(s: Ledger, i: int, r: int, layer: int, score: F4) -> tuple[I1, I1, I1]:
    """(read, wished, candidate) of slot `r` in `layer`, each (P,); `read` includes the always-on set."""
    pages = s.page_block.shape[2]
    candidate, ghost, bias = np.zeros(pages, np.int8), np.zeros(pages, np.int8), np.zeros(pages, np.float32)
    recent = window_start(s, i, r)
    for p in range(s.sink_pages, recent):
        candidate[p], ghost[p] = s.page_live[i, r, p, layer], s.page_ghost[i, r, p, layer]
        tag = s.block_tag[i, s.page_block[i, r, p], layer]
        if tag >= 0:
            group = tag * s.layer_groups + s.layer_group[layer]
            bias[p] = s.control_groups[i, group, GroupControl.ROUTING_BIAS]
    if s.sparse == 1:
        read, wished = select(score, candidate, ghost, bias, s.control_globals[i, GlobalControl.FAN_OUT])
    else:
        read, wished = candidate.copy(), candidate | ghost
    for p in range(s.slot_pages[i, r]):
        if p < s.sink_pages or p >= recent:
            read[p] = s.page_live[i, r, p, layer]
    return read, wished, candidate


@jit
def _update_page(s: Ledger, i: int, r: int, p: int, layer: int, relative: float) -> None:
    s.page_mass[i, r, p, layer] += MASS_RATE * (relative - s.page_mass[i, r, p, layer])
    s.page_mass_sum[i, r, p, layer] += relative
    s.page_reads[i, r, p, layer] += 1.0
    s.page_last_s[i, r, p, layer] = s.clock_s[i]


@jit
def _count_wish(s: Ledger, i: int, r: int, p: int, layer: int, mass: float) -> None:
    tag = s.block_tag[i, s.page_block[i, r, p], layer]
    gone = s.page_live[i, r, p, layer] == 0
    s.tally[i, Tally.WISHED_PAGES] += 1
    if gone:
        s.tally[i, Tally.GHOST_WISHES] += 1
        if s.clock_s[i] - s.page_gone_s[i, r, p, layer] <= CONFLICT_WINDOW_S:
            s.tally[i, Tally.CONFLICTS] += 1
    if s.req_audited[i, s.slot_request[i, r]] == 1:  # the mass of a gone page is known of audits alone
        s.tally[i, Tally.WISHED_MASS] += mass
        if not gone:
            s.tally[i, Tally.HIT_MASS] += mass
    if tag >= 0:
        group = tag * s.layer_groups + s.layer_group[layer]
        s.group_wishes[i, group, 0] += 1.0
        if gone:
            s.group_wishes[i, group, 1] += 1.0


@jit
def _codec_error(s: Ledger, i: int, r: int, layer: int, read: I1, mass: F4) -> float:
    """Σ mass · codec error of the pages that are read."""
    error = 0.0
    for p in range(s.slot_pages[i, r]):
        if read[p] == 1:
            block = s.page_block[i, r, p]
            error += float(mass[p]) * s.block_error[i, block, layer, s.block_codec[i, block, layer]]
    return error


@jit
def _observe_layer(s: Ledger, i: int, r: int, layer: int, mass: F4, score: F4) -> float:
    """Update telemetry of one layer. Returns an audited layer's fidelity loss: missed mass + Σ mass · codec error."""
    read, wished, _ = read_masks(s, i, r, layer, score)
    pages = s.slot_pages[i, r]
    captured, count = 0.0, 0
    for p in range(pages):
        if read[p] == 1:
            captured += float(mass[p])
            count += 1
    for p in range(pages):
        if read[p] == 1 and captured > 0.0:
            _update_page(s, i, r, p, layer, float(mass[p]) / captured * count)
        if wished[p] == 1:
            _count_wish(s, i, r, p, layer, float(mass[p]))
    if s.req_audited[i, s.slot_request[i, r]] == 0:
        return 0.0
    return min(1.0, max(0.0, 1.0 - captured) + _codec_error(s, i, r, layer, read, mass))


@jit
def observe(s: Ledger, i: int, r: int, mass: F4, score: F4) -> None:
    """Observe slot `r`: `mass` and `score` are (L, P).

    For an audited request `mass` is exact (sums to 1 over all its pages, gone ones included); for others only its
    values on pages that are read matter.
    """
    q = s.slot_request[i, r]
    loss = 0.0
    for layer in range(s.layers):
        loss += _observe_layer(s, i, r, layer, mass[layer], score[layer])
    s.req_observed[i, q] += 1
    if s.req_audited[i, q] == 1:
        c = s.req_class[i, q]
        s.req_loss[i, q] += loss
        s.tally[i, Tally.LOSS] += s.class_fidelity[c] * loss
        s.loss_class[i, c, 0] += loss
        s.loss_class[i, c, 1] += s.layers
