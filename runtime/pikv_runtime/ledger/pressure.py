"""Making room, in the stated order: cached blocks, then (if allowed) the ladder; the callers stop or preempt."""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import GlobalControl
from pikv_runtime.ledger.heap import heapify, pop
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.order import decode_page, demote, evictable_pages, stored_bytes
from pikv_runtime.ledger.state import Ledger
from pikv_runtime.ledger.utility import page_utility
from pikv_runtime.ledger.victims import clear_room


@jit
def demotes(s: Ledger, i: int) -> bool:
    """Whether the control in force lets pressure demote live pages."""
    return s.control_globals[i, GlobalControl.R_PRESSURE] > 1.0


@jit
def demote_for(s: Ledger, i: int, rank: int, need: int) -> None:
    """Demote pages on `rank`, lowest utility first, one rung a pass, until `need` bytes are freed or the mean
    ratio of the evictable pages reaches `r_pressure`."""
    codes, _ = evictable_pages(s, i)
    values, count, stored = np.empty(codes.shape[0]), 0, 0.0
    dense = float(codes.shape[0] * s.bf16_bytes)
    for j in range(codes.shape[0]):
        code = codes[j]
        r, p, layer = decode_page(code)
        stored += stored_bytes(s, i, code)
        # A page that has copies may be read elsewhere than where it lies.
        copied = s.block_copies.shape[1] > 0
        here = s.block_rank[i, s.page_block[i, r, p], layer] if copied else s.page_rank[i, r, layer, p]
        if here == rank:
            values[count], codes[count] = page_utility(s, i, r, p, layer), code
            count += 1
    floor = dense / s.control_globals[i, GlobalControl.R_PRESSURE]
    heapify(values, codes, count)
    freed = 0
    for rung_pass in range(s.codec_bytes.shape[0]):
        for j in range(count - 1, -1, -1):
            if freed >= need or stored <= floor:
                return
            # The first pass pops the heap; what was popped lies behind it in order, for the passes after it.
            gain = demote(s, i, pop(values, codes, j + 1) if rung_pass == 0 else codes[j])
            freed += gain
            stored -= gain


@jit
def make_room(s: Ledger, i: int, rank: int, need: int) -> bool:
    """Free bytes on `rank` until `need` more fit under its cap. False if the order of sacrifice is exhausted."""
    if clear_room(s, i, rank, need):
        return True
    if demotes(s, i):
        short = s.bytes_rank[i, rank] + need - s.cap_bytes[i]
        # A little more than asked, so that the order is not made again for the next page.
        demote_for(s, i, rank, max(short, s.cap_bytes[i] // 50))
    return s.bytes_rank[i, rank] + need <= s.cap_bytes[i]
