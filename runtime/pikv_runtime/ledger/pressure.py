"""Making room, in the stated order: cached blocks, then (if allowed) the ladder; the callers stop or preempt."""

from __future__ import annotations

from pikv_runtime.contract import GlobalControl
from pikv_runtime.ledger.blocks import drop_block
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import next_rung, recode
from pikv_runtime.ledger.state import Ledger, Tally
from pikv_runtime.ledger.utility import ordered_pages, refresh_victims


@jit
def on_rank(s: Ledger, i: int, block: int, rank: int) -> bool:
    """Whether any page of `block` lies on `rank`."""
    for layer in range(s.layers):
        if s.block_codec[i, block, layer] >= 0 and s.block_rank[i, block, layer] == rank:
            return True
    return False


@jit
def evict_cached(s: Ledger, i: int, rank: int) -> bool:
    """Evict the cached block of lowest utility that has bytes on `rank` (-1: any). False if there is none.

    The order is made once an interval, or again when it runs out: blocks cached since are younger than its rest.
    """
    for _ in range(2):
        while s.victim_next[i, 0] < s.victim_next[i, 1]:
            block = s.victims[i, s.victim_next[i, 0]]
            if s.block_cached[i, block] == 1 and (rank < 0 or on_rank(s, i, block, rank)):
                s.victim_next[i, 0] += 1
                s.tally[i, Tally.EVICTED_BLOCKS] += 1
                drop_block(s, i, block)
                return True
            s.victim_next[i, 0] += 1
        refresh_victims(s, i)
    return False


@jit
def may_demote(s: Ledger, i: int, block: int) -> bool:
    """Shared pages are never demoted by one request's group."""
    return s.block_users[i, block] == 1


@jit
def demote_for(s: Ledger, i: int, rank: int, need: int) -> None:
    """Demote pages on `rank`, lowest utility first, one rung a pass, until `need` bytes are freed or the mean
    ratio of the evictable pages reaches `r_pressure`."""
    order = ordered_pages(s, i)
    pages, layers = s.page_block.shape[2], s.layers
    stored = 0
    for code in order:
        block = s.page_block[i, code // layers // pages, code // layers % pages]
        stored += s.codec_bytes[s.block_codec[i, block, code % layers]]
    dense = s.bf16_bytes * order.shape[0]
    floor = dense / s.control_globals[i, GlobalControl.R_PRESSURE]
    freed = 0
    for _ in range(s.codec_bytes.shape[0]):
        for code in order:
            if freed >= need or stored <= floor:
                return
            layer = code % layers
            block = s.page_block[i, code // layers // pages, code // layers % pages]
            codec = s.block_codec[i, block, layer]
            rung = next_rung(s, codec)
            if rung < 0 or s.block_rank[i, block, layer] != rank or not may_demote(s, i, block):
                continue
            gain = s.codec_bytes[codec] - s.codec_bytes[rung]
            recode(s, i, block, layer, rung)
            freed += gain
            stored -= gain


@jit
def make_room(s: Ledger, i: int, rank: int, need: int) -> bool:
    """Free bytes on `rank` until `need` more fit under its cap. False if the order of sacrifice is exhausted."""
    while s.bytes_rank[i, rank] + need > s.cap_bytes[i]:
        if not evict_cached(s, i, rank):
            break
    short = s.bytes_rank[i, rank] + need - s.cap_bytes[i]
    if short > 0 and s.control_globals[i, GlobalControl.DEMOTE_ON_PRESSURE] >= 0.5:
        # A little more than asked, so that the order is not made again for the next page.
        demote_for(s, i, rank, max(short, s.cap_bytes[i] // 50))
    return s.bytes_rank[i, rank] + need <= s.cap_bytes[i]
