"""Utilities: a weighted sum of features in [0, 1]; the lowest goes first. A ranker is one such weight vector."""

from __future__ import annotations

from pikv_runtime.contract import GlobalControl
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import Ledger


@jit
def window_pages(s: Ledger, i: int) -> int:
    """Pages of the recent window, the open page apart."""
    return int(s.control_globals[i, GlobalControl.WINDOW] + 0.5)


@jit
def window_start(s: Ledger, i: int, r: int) -> int:
    """First page of the recent window (before the open page) of slot `r`."""
    return s.slot_pages[i, r] - 1 - window_pages(s, i)


@jit
def always_on(s: Ledger, i: int, r: int, p: int) -> bool:
    """Sinks, the recent window and the open page: read by every query, never evicted or demoted."""
    return p < s.sink_pages or p >= window_start(s, i, r)


@jit
def decoding(s: Ledger, i: int, r: int) -> bool:
    """Whether slot `r` runs and has left prefill (pages of a request in prefill are pinned)."""
    return s.slot_request[i, r] >= 0 and s.slot_tokens[i, r] >= s.slot_target[i, r]


@jit
def page_utility(s: Ledger, i: int, r: int, p: int, layer: int) -> float:
    """Utility of a live page under the weights of the control in force; clairvoyant, what attention of its request is
    still to come, by fidelity weight and per byte."""
    if s.page_rule[i] == 1:
        weight = s.class_fidelity[i, s.req_class[i, s.slot_request[i, r]]]
        return weight * s.page_future[i, r, layer, p] / s.codec_bytes[s.page_codec[i, r, layer, p]]
    w = s.control_globals[i]
    value = 0.0  # most rankers weigh one feature: what has no weight is not even loaded
    if w[GlobalControl.PAGE_RECENCY] != 0.0:
        age = (s.clock_s[i] - s.page_last_s[i, r, layer, p]) / s.interval_s[i]
        value += w[GlobalControl.PAGE_RECENCY] / (1.0 + max(age, 0.0))
    if w[GlobalControl.PAGE_FREQUENCY] != 0.0:
        reads = s.page_reads[i, r, layer, p]
        value += w[GlobalControl.PAGE_FREQUENCY] * reads / (4.0 + reads)
    if w[GlobalControl.PAGE_MASS] != 0.0:
        mass = s.page_mass[i, r, layer, p]
        value += w[GlobalControl.PAGE_MASS] * mass / (1.0 + mass)
    if w[GlobalControl.PAGE_MASS_SUM] != 0.0:
        total = s.page_mass_sum[i, r, layer, p]
        value += w[GlobalControl.PAGE_MASS_SUM] * total / (4.0 + total)
    if w[GlobalControl.PAGE_POSITION] != 0.0:
        value += w[GlobalControl.PAGE_POSITION] * (p + 1.0) / s.slot_pages[i, r]
    if w[GlobalControl.PAGE_CLASS] != 0.0:
        fidelity = s.class_fidelity[i, s.req_class[i, s.slot_request[i, r]]]
        value += w[GlobalControl.PAGE_CLASS] * fidelity / (1.0 + fidelity)
    return value


@jit
def _recency(age: float) -> float:
    """1/(1 + age/16), age in intervals: gaps between uses are minutes, intervals seconds, so this keeps resolution
    where it matters. Uses after the moment that ages are counted from (age < 0) are worth more, up to 2."""
    return 16.0 / (16.0 + age) if age >= 0.0 else 2.0 - 16.0 / (16.0 - age)


@jit
def block_utility(s: Ledger, i: int, block: int, now_s: float) -> float:
    """Utility of a cached block, its age counted from `now_s`; the 1e-6 terms break ties deepest block first."""
    w = s.control_globals[i]
    depth = s.block_depth[i, block]
    value = -1e-6 * depth  # most rankers weigh one feature: what has no weight is not even loaded
    if w[GlobalControl.BLOCK_RECENCY] != 0.0:
        age = (now_s - s.block_last_s[i, block]) / s.interval_s[i]
        value += w[GlobalControl.BLOCK_RECENCY] * _recency(age)
    if w[GlobalControl.BLOCK_FREQUENCY] != 0.0:
        uses = s.block_uses[i, block]
        value += w[GlobalControl.BLOCK_FREQUENCY] * uses / (4.0 + uses)
    if w[GlobalControl.BLOCK_DEPTH] != 0.0:
        value += w[GlobalControl.BLOCK_DEPTH] / (1.0 + depth)
    if w[GlobalControl.BLOCK_CHILDREN] != 0.0:
        children = s.block_children[i, block]
        value += w[GlobalControl.BLOCK_CHILDREN] * children / (2.0 + children)
    if w[GlobalControl.BLOCK_LENGTH] != 0.0:
        length = s.block_length[i, block] / (s.page_tokens * 16.0)
        value += w[GlobalControl.BLOCK_LENGTH] * length / (1.0 + length)
    if w[GlobalControl.BLOCK_CLASS] != 0.0:
        weight = s.class_weight[i, s.block_class[i, block]]
        value += w[GlobalControl.BLOCK_CLASS] * weight / (1.0 + weight)
    return value
