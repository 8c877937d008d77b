"""Block rules: which cached block goes first where the lane's policy does not say it by weights.

`RuleCode.UTILITY` is the contract's weighted sum (`utility.block_utility`, ordered in `victims.py`). The queue rules
keep lists (`queues.py`), the scored ones a number for each block in the heap of `victims.py`. This file tells them what
happens; `pikv_runtime.block_rules` has their names and parameters.
"""

from __future__ import annotations

import numpy as np

from pikv_runtime.ledger.heap import heapify, pop
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.queues import FIRST, clear_queues, join_remembered, oldest, push_head, queued, unlink
from pikv_runtime.ledger.rule_arc import choose_arc, join_arc, remember_arc, touch_arc
from pikv_runtime.ledger.rule_s3fifo import MOST_SEEN, choose_s3fifo, remember_s3fifo
from pikv_runtime.ledger.rule_scores import belady_key, lrb_key, tlru_key
from pikv_runtime.ledger.rule_sieve import choose_sieve
from pikv_runtime.ledger.rule_two_queue import choose_two_queue, remember_two_queue, touch_two_queue
from pikv_runtime.ledger.state import Ledger, Past, RuleCode


@jit
def scored(s: Ledger, i: int) -> bool:
    """Whether the lane's rule gives scores."""
    return s.block_rule[i] > RuleCode.ARC


@jit
def rule_made(s: Ledger, i: int, block: int, q: int) -> None:
    """Request `q` opened a block."""
    if queued(s, i):
        s.queue_seen[i, block] = 0
    elif scored(s, i):
        s.block_past[i, block, Past.USE_BEFORE] = s.block_past[i, block, Past.USE_EARLIER] = -1.0
        s.block_past[i, block, Past.MADE] = s.clock_s[i]
        s.block_past[i, block, Past.TOKENS] = 0.0
        s.block_past[i, block, Past.REQUEST] = q


@jit
def rule_hit(s: Ledger, i: int, block: int, q: int) -> None:
    """The prompt of request `q`, now admitted, found a block; called deepest block first, before its last use changes.
    Room for the rest of the prompt has been made by then: an admission that fails is no use."""
    rule = s.block_rule[i]
    if queued(s, i):
        s.queue_seen[i, block] = min(s.queue_seen[i, block] + 1, MOST_SEEN)
        if rule == RuleCode.TWO_QUEUE:
            touch_two_queue(s, i, block)
        elif rule == RuleCode.ARC:
            touch_arc(s, i, block)
    elif scored(s, i):
        s.block_past[i, block, Past.USE_EARLIER] = s.block_past[i, block, Past.USE_BEFORE]
        s.block_past[i, block, Past.USE_BEFORE] = s.block_last_s[i, block]
        s.block_past[i, block, Past.REQUEST] = max(s.block_past[i, block, Past.REQUEST], float(q))


@jit
def rule_released(s: Ledger, i: int, block: int, tokens: int) -> None:
    """A request that had `tokens` lets go of a block."""
    if scored(s, i):
        s.block_past[i, block, Past.TOKENS] = tokens


@jit
def rule_cached(s: Ledger, i: int, block: int) -> None:
    """A block became cached under a queue rule: it joins, or has kept its place."""
    if s.queue_of[i, block] != 0:
        return
    rule = s.block_rule[i]
    if rule == RuleCode.TWO_QUEUE or rule == RuleCode.S3FIFO:
        join_remembered(s, i, block)
    elif rule == RuleCode.ARC:
        join_arc(s, i, block)
    else:
        push_head(s, i, FIRST, block)


@jit
def rule_choice(s: Ledger, i: int, rank: int) -> int:
    """The cached block with bytes on `rank` (-1: any) that a queue rule gives up next, or -1. The caller evicts it."""
    rule = s.block_rule[i]
    if rule == RuleCode.TWO_QUEUE:
        return choose_two_queue(s, i, rank)
    if rule == RuleCode.S3FIFO:
        return choose_s3fifo(s, i, rank)
    if rule == RuleCode.SIEVE:
        return choose_sieve(s, i, rank)
    if rule == RuleCode.ARC:
        return choose_arc(s, i, rank)
    return oldest(s, i, FIRST, rank)


@jit
def rule_evicts(s: Ledger, i: int, block: int) -> None:
    """A queue rule's choice leaves the device: it is remembered as the rule wants, while its hash is known."""
    rule = s.block_rule[i]
    if rule == RuleCode.TWO_QUEUE:
        remember_two_queue(s, i, block)
    elif rule == RuleCode.S3FIFO:
        remember_s3fifo(s, i, block)
    elif rule == RuleCode.ARC:
        remember_arc(s, i, block)
    else:
        unlink(s, i, block)


@jit
def rule_key(s: Ledger, i: int, block: int) -> int:
    """Key of a cached block in the heap of victims under a scored rule."""
    rule = s.block_rule[i]
    if rule == RuleCode.TLRU:
        key = tlru_key(s, i, block)
    elif rule == RuleCode.LRB:
        key = lrb_key(s, i, block)
    else:
        key = belady_key(s, i, block)
    return (key << 32) | block


@jit
def order_intervals(s: Ledger, i: int) -> float:
    """Control intervals for which a scored rule's order is good. A predicted moment that has passed without a use must
    not keep its block for long."""
    if s.block_rule[i] == RuleCode.LRB:
        return 4.0
    return 32.0 if s.block_rule[i] == RuleCode.TLRU else 0.0


@jit
def begin_rule(s: Ledger, i: int) -> None:
    """Start the lane's rule over: no order, empty queues, no memory. What is cached joins, oldest by last use first."""
    s.victim_count[i] = -1
    if queued(s, i):
        clear_queues(s, i)
    for block in range(s.block_cached.shape[1] if scored(s, i) else 0):
        s.block_past[i, block, Past.USE_BEFORE] = s.block_past[i, block, Past.USE_EARLIER] = -1.0
        s.block_past[i, block, Past.MADE] = s.block_last_s[i, block]
        s.block_past[i, block, Past.TOKENS] = s.block_length[i, block]
        s.block_past[i, block, Past.REQUEST] = max(0, s.next_arrival[i] - 1)
    if queued(s, i) and s.cached_count[i] > 0:
        values, blocks, count = np.empty(s.cached_count[i]), np.empty(s.cached_count[i], np.int64), 0
        for block in range(s.block_cached.shape[1]):
            if s.block_cached[i, block] == 1:
                values[count] = s.block_last_s[i, block]
                blocks[count] = block - (s.block_depth[i, block] << 32)  # among equals the deepest first
                count += 1
        heapify(values, blocks, count)
        for left in range(count, 0, -1):
            rule_cached(s, i, pop(values, blocks, left) & 0xFFFFFFFF)
