"""Which cached block goes first: a heap by block utility (or by a rule's score), made when it is needed and kept while
it tells the truth; or, where the lane's rule keeps queues, what the rule says.

Cached blocks gain nothing but age, and all alike, so an order stays good for a while: it is made again when the control
weighs blocks otherwise, after `ORDER_INTERVALS` intervals, and when it runs out. What becomes cached meanwhile joins
it, its age counted from when the order was made: by recency alone the order is the same at any time. Entries whose
block was used since, or ordered anew, are passed over.
"""

from __future__ import annotations

from pikv_runtime.contract import BLOCK_WEIGHTS
from pikv_runtime.ledger.blocks import drop_block, to_cache
from pikv_runtime.ledger.heap import heapify_keys, pop_key, push_key
from pikv_runtime.ledger.host import drop_oldest, to_host
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import drop_copy, holds_copy, on_rank, tell_users
from pikv_runtime.ledger.queues import queued
from pikv_runtime.ledger.rules import (
    order_intervals,
    rule_cached,
    rule_choice,
    rule_evicts,
    rule_key,
    scored,
)
from pikv_runtime.ledger.state import Ledger, Tally
from pikv_runtime.ledger.utility import block_utility

FIRST_WEIGHT = int(BLOCK_WEIGHTS.start)
ORDER_INTERVALS = 32.0  # of weights; scored rules have their own
MOST_UTILITY = 16.0  # six weights of at most 1, on features of at most 2
SCALE = float(1 << 26)  # utilities are told apart to 1.5e-8


@jit
def _entry(s: Ledger, i: int, block: int) -> int:
    """Utility in fixed point above, block slot below: entries in order are blocks in order, and one word each."""
    if scored(s, i):
        return rule_key(s, i, block)
    return (int((block_utility(s, i, block, s.victim_made_s[i]) + MOST_UTILITY) * SCALE) << 32) | block


@jit
def refresh_victims(s: Ledger, i: int) -> None:
    """Order all cached blocks, lowest utility first."""
    heap, count = s.victims[i], 0
    s.victim_made_s[i] = s.clock_s[i]
    for block in range(s.block_cached.shape[1]):
        if count == s.cached_count[i]:
            break  # those are all: slots further up were never used
        if s.block_cached[i, block] == 1:
            heap[count] = s.block_order[i, block] = _entry(s, i, block)
            count += 1
    heapify_keys(heap, count)
    s.victim_count[i] = count


@jit
def cache_block(s: Ledger, i: int, block: int) -> None:
    """Keep a whole block without users for a later prompt, and give it its place in the order of victims."""
    to_cache(s, i, block)
    if queued(s, i):
        rule_cached(s, i, block)
        return
    count = s.victim_count[i]
    if count < 0:
        return  # there is no order; the next one will have it
    if count == s.victims.shape[1]:
        s.victim_count[i] = -1  # full of entries that are passed over: make it again
        return
    entry = _entry(s, i, block)
    s.block_order[i, block] = entry
    push_key(s.victims[i], count, entry)
    s.victim_count[i] = count + 1


@jit
def age_victims(s: Ledger, i: int) -> None:
    """A control came into force: forget the order if it is old or was made under other weights."""
    good_for = order_intervals(s, i) if scored(s, i) else ORDER_INTERVALS
    same = s.clock_s[i] - s.victim_made_s[i] < good_for * s.interval_s[i]
    for k in range(s.victim_weights.shape[1]):
        if s.victim_weights[i, k] != s.control_globals[i, FIRST_WEIGHT + k]:
            same = False
        s.victim_weights[i, k] = s.control_globals[i, FIRST_WEIGHT + k]
    if not same:
        s.victim_count[i] = -1


@jit
def _next_victim(s: Ledger, i: int) -> int:
    """The next block in order that is still cached as it was put there, or -1."""
    while s.victim_count[i] > 0:
        entry = pop_key(s.victims[i], s.victim_count[i])
        s.victim_count[i] -= 1
        block = entry & 0xFFFFFFFF
        if s.block_cached[i, block] == 1 and s.block_order[i, block] == entry:
            return block
    return -1


@jit
def _evict_choice(s: Ledger, i: int, rank: int) -> bool:
    """Evict what a queue rule gives up next on `rank` (-1: anywhere). False if there is nothing."""
    block = rule_choice(s, i, rank)
    if block < 0:
        return False
    _evict(s, i, block)
    return True


@jit
def evict_cached(s: Ledger, i: int) -> bool:
    """Evict the cached block of lowest utility. False if there is none."""
    if s.cached_count[i] == 0:
        return False
    if queued(s, i):
        return _evict_choice(s, i, -1)
    block = _next_victim(s, i)
    if block < 0:
        refresh_victims(s, i)
        block = _next_victim(s, i)
    _evict(s, i, block)
    return True


@jit
def free_slot(s: Ledger, i: int) -> bool:
    """Free a block slot: the host's oldest block goes first. False if there is nothing to give up."""
    if s.host_cap[i] > 0 and drop_oldest(s, i):
        return True
    before = s.free_count[i]
    while s.free_count[i] == before:
        if not evict_cached(s, i):
            return False
        if s.free_count[i] == before:
            drop_oldest(s, i)  # it went to the host, which frees no slot
    return True


@jit
def _evict(s: Ledger, i: int, block: int) -> None:
    """A cached block leaves the device: for the host if there is one and it fits, else for good."""
    s.tally[i, Tally.EVICTED_BLOCKS] += 1
    if queued(s, i):
        rule_evicts(s, i, block)
    if s.host_cap[i] == 0 or not to_host(s, i, block):
        drop_block(s, i, block)


@jit
def evict_cached_on(s: Ledger, i: int, rank: int) -> bool:
    """Evict the cached block of lowest utility that has bytes on `rank`. False if there is none."""
    if s.cached_bytes[i, rank] == 0:
        return False
    if queued(s, i):
        return _evict_choice(s, i, rank)
    while True:
        block = _next_victim(s, i)
        if block < 0:
            refresh_victims(s, i)
        elif on_rank(s, i, block, rank):
            _evict(s, i, block)
            return True


@jit
def _thin_out(s: Ledger, i: int, rank: int, need: int) -> None:
    """Drop further copies of pages on `rank` until `need` bytes more fit."""
    for block in range(s.block_copies.shape[1]):
        dropped = 0
        for layer in range(s.layers):
            if holds_copy(s, i, block, layer, rank):
                drop_copy(s, i, block, layer, rank)
                dropped += 1
        if dropped > 0:
            tell_users(s, i, block)
            if s.bytes_rank[i, rank] + need <= s.cap_bytes[i]:
                return


@jit
def clear_room(s: Ledger, i: int, rank: int, need: int) -> bool:
    """Give up further copies of pages, then cached blocks, until `need` bytes more fit on `rank`. False if that does
    not suffice."""
    if s.copy_bytes[i, rank] > 0 and s.bytes_rank[i, rank] + need > s.cap_bytes[i]:
        _thin_out(s, i, rank, need)
    while s.bytes_rank[i, rank] + need > s.cap_bytes[i]:
        if not evict_cached_on(s, i, rank):
            return False
    return True
