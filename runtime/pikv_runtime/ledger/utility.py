"""Utilities: a weighted sum of features in [0, 1]; the lowest goes first. A ranker is one such weight vector."""

from __future__ import annotations

from pikv_runtime.contract import GlobalControl
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import Ledger


@jit
def window_start(s: Ledger, i: int, r: int) -> int:
    """First page of the recent window (before the open page) of slot `r`."""
    return s.slot_pages[i, r] - 1 - int(s.control_globals[i, GlobalControl.WINDOW] + 0.5)


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
    """Utility of a live page under the weights of the control in force."""
    w = s.control_globals[i]
    age = (s.clock_s[i] - s.page_last_s[i, r, p, layer]) / s.interval_s[i]
    mass = s.page_mass[i, r, p, layer]
    total = s.page_mass_sum[i, r, p, layer]
    reads = s.page_reads[i, r, p, layer]
    fidelity = s.class_fidelity[s.req_class[i, s.slot_request[i, r]]]
    value = w[GlobalControl.PAGE_RECENCY] / (1.0 + max(age, 0.0))
    value += w[GlobalControl.PAGE_FREQUENCY] * reads / (4.0 + reads)
    value += w[GlobalControl.PAGE_MASS] * mass / (1.0 + mass)
    value += w[GlobalControl.PAGE_MASS_SUM] * total / (4.0 + total)
    value += w[GlobalControl.PAGE_POSITION] * (p + 1.0) / s.slot_pages[i, r]
    value += w[GlobalControl.PAGE_CLASS] * fidelity / (1.0 + fidelity)
    return value


@jit
def block_utility(s: Ledger, i: int, block: int) -> float:
    """Utility of a cached block; the 1e-6 terms break ties deepest block first."""
    w = s.control_globals[i]
    age = max(0.0, (s.clock_s[i] - s.block_last_s[i, block]) / s.interval_s[i])
    uses = s.block_uses[i, block]
    children = s.block_children[i, block]
    depth = s.block_depth[i, block]
    weight = s.class_weight[s.block_class[i, block]]
    length = s.block_length[i, block] / (s.page_tokens * 16.0)
    # Gaps between uses are minutes, intervals seconds: 1/(1+age/16) keeps resolution where it matters.
    value = w[GlobalControl.BLOCK_RECENCY] * 16.0 / (16.0 + age)
    value += w[GlobalControl.BLOCK_FREQUENCY] * uses / (4.0 + uses)
    value += w[GlobalControl.BLOCK_DEPTH] / (1.0 + depth)
    value += w[GlobalControl.BLOCK_CHILDREN] * children / (2.0 + children)
    value += w[GlobalControl.BLOCK_LENGTH] * length / (1.0 + length)
    value += w[GlobalControl.BLOCK_CLASS] * weight / (1.0 + weight)
    return value - 1e-6 * depth
