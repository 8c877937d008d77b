"""Block rules that give each cached block a score once, when it becomes cached or the order is made anew; the heap of
`victims.py` holds the blocks by score. A key has 31 bits of score, lowest first out, above 32 bits of block slot.
"""

from __future__ import annotations

import math

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.reuse import expected_gap
from pikv_runtime.ledger.state import Ledger, Past, Price, RuleParam, Status

RECENT = 1 << 30  # where protected blocks begin in T-LRU's order
TICKS = 64.0  # per control interval: how finely T-LRU tells times apart
FAR = (1 << 20) - 1  # a request number that nobody has
DEEP = (1 << 11) - 1
FINE = 1 << 10  # how finely predicted times are told apart, per interval
LAST = (1 << 31) - 1


@jit
def tlru_key(s: Ledger, i: int, block: int) -> int:
    """Tail-Optimised LRU (Zhang et al., "Tail-Optimized Caching for LLM Inference", 2025, arXiv:2510.15152).

    A conversation of L tokens whose next prompt adds Q needs only B = max(0, L + Q - xi) of them cached for its next
    prefill to compute at most xi. Blocks that begin at B or later are given up first, in LRU order; then the others,
    in LRU order. xi is the prompt that the model clock prefills within a share of the class's objective for the first
    token (`threshold`); Q is `next_prompt` pages. Equal times go deepest block first.
    """
    wanted_s = s.rule_params[i, RuleParam.THRESHOLD] * s.class_ttft_s[i, s.block_class[i, block]]
    price = s.prices[i, Price.PREFILL_TOKEN]
    most = wanted_s / price if price > 0.0 else math.inf
    history = s.block_past[i, block, Past.TOKENS] + s.rule_params[i, RuleParam.NEXT_PROMPT] * s.page_tokens
    depth = s.block_depth[i, block]
    ticks = int(min(s.block_last_s[i, block] / s.interval_s[i] * TICKS, float((1 << 19) - 1)))
    key = (ticks << 11) | (DEEP - min(depth, DEEP))
    return key + (RECENT if depth * s.page_tokens < history - most else 0)


@jit
def _next_use(s: Ledger, i: int, block: int) -> int:
    """Number of the next request whose prompt holds the block, of those that have not started yet; FAR: none."""
    depth, q = s.block_depth[i, block], int(s.block_past[i, block, Past.REQUEST])
    q = s.req_next[i, q, depth] if depth < s.req_next.shape[2] else -1
    while q >= 0 and s.req_status[i, q] > Status.WAITING:
        q = s.req_next[i, q, depth]
    return q if q >= 0 else FAR


@jit
def belady_key(s: Ledger, i: int, block: int) -> int:
    """MIN (Belady, "A study of replacement algorithms for a virtual-storage computer", 1966): the block whose next use
    lies furthest ahead goes first, deepest block first among those that one prompt uses next. Offline: next uses
    stand in `req_next`."""
    return ((FAR - min(_next_use(s, i, block), FAR)) << 11) | (DEEP - min(s.block_depth[i, block], DEEP))


@jit
def lrb_key(s: Ledger, i: int, block: int) -> int:
    """Relaxed Belady, learned (Song et al., "Learning relaxed Belady for content distribution network caching", NSDI
    2020): the block whose predicted next use lies furthest ahead goes first. The prediction is made when the block is
    put in order, and holds as a moment in time; it is not made anew for a sample of candidates at every eviction."""
    ahead = s.clock_s[i] / s.interval_s[i] + expected_gap(s, i, block)
    return LAST - int(min(max(ahead, 0.0) * FINE, float(LAST)))
