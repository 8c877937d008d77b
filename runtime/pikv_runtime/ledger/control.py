"""Applying a control at an interval's start: evict, climb down the ladder, keep cached blocks within their share."""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import GlobalControl, GroupControl
from pikv_runtime.ledger.balance import rebalance_if_due
from pikv_runtime.ledger.commit import seal_outside
from pikv_runtime.ledger.heap import heapify, pop
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.order import (
    by_group,
    can_demote,
    decode_page,
    demote,
    evictable_pages,
    next_rung,
    stored_bytes,
)
from pikv_runtime.ledger.pages import recode
from pikv_runtime.ledger.references import evict_page
from pikv_runtime.ledger.state import F8, I8, Ledger, Tally
from pikv_runtime.ledger.utility import block_utility, decoding, window_pages
from pikv_runtime.ledger.victims import age_victims, evict_cached

ROUNDING = 1e-6  # bytes


@jit
def _evict_group(s: Ledger, i: int, g: int, values: F8, codes: I8) -> int:
    """Free the asked share of group `g`'s bytes, lowest utility first, to within one page. Returns how many remain
    of the heap (`values`, `codes`)."""
    quota = 0.0
    for j in range(codes.shape[0]):
        quota += stored_bytes(s, i, codes[j])
    quota *= s.control_groups[i, g, GroupControl.EVICT_FRACTION]
    count = codes.shape[0]
    while count > 0:
        size = stored_bytes(s, i, codes[0])
        if size > quota:
            break
        quota -= size
        r, p, layer = decode_page(pop(values, codes, count))
        count -= 1
        evict_page(s, i, r, p, layer)
    return count


@jit
def _compress_group(s: Ledger, i: int, g: int, values: F8, codes: I8, count: int) -> bool:
    """Demote, lowest utility first and one rung a pass, until the mean ratio of the heap's `count` pages reaches what
    was asked of group `g`. Returns whether it does, to within one page."""
    stored, able = 0.0, 0
    target = count * s.bf16_bytes / s.control_groups[i, g, GroupControl.COMPRESSION_RATIO]
    for j in range(count):
        stored += stored_bytes(s, i, codes[j])
        if can_demote(s, i, codes[j]):
            values[able], codes[able] = values[j], codes[j]
            able += 1
    heapify(values, codes, able)
    for rung_pass in range(s.codec_bytes.shape[0]):
        for j in range(able - 1, -1, -1):
            if stored <= target + ROUNDING:
                return True
            # The first pass pops the heap; what was popped lies behind it in order, for the passes after it.
            code = pop(values, codes, j + 1) if rung_pass == 0 else codes[j]
            stored -= demote(s, i, code)
    return stored <= target + s.codec_bytes[s.top_codec]


@jit
def _asks(s: Ledger, i: int) -> bool:
    """Whether the control asks anything lossy of any group."""
    for g in range(s.control_groups.shape[1]):
        if s.control_groups[i, g, GroupControl.EVICT_FRACTION] > 0.0:
            return True
        if s.control_groups[i, g, GroupControl.COMPRESSION_RATIO] > 1.0:
            return True
    return False


@jit
def _busy_groups(s: Ledger, i: int, codes: I8, groups: I8) -> I8:
    """Evictable pages of every group (N + 1,) in which the control frees something; 0 for the others."""
    held = np.zeros(s.control_groups.shape[1] + 1, np.int64)
    stored = np.zeros(held.shape[0])
    for j in range(codes.shape[0]):
        held[groups[j]] += 1
        stored[groups[j]] += stored_bytes(s, i, codes[j])
    least = s.codec_bytes[s.codec_bytes.shape[0] - 1]
    for g in range(held.shape[0] - 1):
        evicts = stored[g] * s.control_groups[i, g, GroupControl.EVICT_FRACTION] >= least
        target = held[g] * s.bf16_bytes / s.control_groups[i, g, GroupControl.COMPRESSION_RATIO]
        if held[g] > 0:
            s.tally[i, Tally.ASKED] += 1
        if not evicts and stored[g] <= target + ROUNDING:
            held[g] = 0
    held[held.shape[0] - 1] = 0  # untagged
    return held


@jit
def _steer_live(s: Ledger, i: int) -> None:
    """Evict and compress as the groups' controls ask."""
    codes, groups = evictable_pages(s, i)
    values, ordered, start = by_group(s, i, codes, groups, _busy_groups(s, i, codes, groups))
    for g in range(start.shape[0] - 2):
        if start[g] == start[g + 1]:
            continue
        heap, named = values[start[g] : start[g + 1]], ordered[start[g] : start[g + 1]]
        heapify(heap, named, named.shape[0])
        count = _evict_group(s, i, g, heap, named)
        if not _compress_group(s, i, g, heap, named, count):
            s.tally[i, Tally.VETOES] += 1


@jit
def _heap_cached(s: Ledger, i: int, values: F8, blocks: I8) -> int:
    """List the cached blocks that have a rung below as a heap. Returns how many."""
    count = 0
    for block in range(s.block_cached.shape[1]):
        if s.block_cached[i, block] == 0:
            continue
        for layer in range(s.layers):
            if next_rung(s, s.block_codec[i, block, layer]) >= 0:
                blocks[count] = block
                values[count] = block_utility(s, i, block, s.clock_s[i])
                count += 1
                break
    heapify(values, blocks, count)
    return count


@jit
def _demote_block(s: Ledger, i: int, block: int) -> int:
    """Demote every page of a block by one rung. Returns the bytes freed."""
    freed = 0
    for layer in range(s.layers):
        codec = s.block_codec[i, block, layer]
        rung = next_rung(s, codec)
        if rung >= 0:
            freed += s.codec_bytes[codec] - s.codec_bytes[rung]
            recode(s, i, block, layer, rung)
    return freed


@jit
def _compress_cached(s: Ledger, i: int) -> None:
    """Demote cached blocks, lowest utility first, until their mean ratio reaches `cached_ratio`."""
    stored = float(_cached(s, i))
    pages = float(s.cached_count[i] * s.layers)
    least = pages * s.codec_bytes[s.codec_bytes.shape[0] - 1]
    target = max(least, pages * s.bf16_bytes / s.control_globals[i, GlobalControl.CACHED_RATIO])
    if stored <= target or s.control_globals[i, GlobalControl.CACHED_RATIO] <= 1.0:
        return
    values, blocks = np.empty(s.cached_count[i], np.float64), np.empty(s.cached_count[i], np.int64)
    count = _heap_cached(s, i, values, blocks)
    for rung_pass in range(s.codec_bytes.shape[0]):
        for j in range(count - 1, -1, -1):
            if stored <= target:
                return
            block = pop(values, blocks, j + 1) if rung_pass == 0 else blocks[j]
            stored -= _demote_block(s, i, block)


@jit
def _cached(s: Ledger, i: int) -> int:
    total = 0
    for rank in range(s.ranks):
        total += s.cached_bytes[i, rank]
    return total


@jit
def _limit_cached(s: Ledger, i: int) -> None:
    limit = s.control_globals[i, GlobalControl.CACHED_SHARE] * float(s.cap_bytes[i]) * s.ranks
    while _cached(s, i) > limit and evict_cached(s, i):
        pass


@jit
def apply_control(s: Ledger, i: int) -> None:
    """Put the control in `control_groups` and `control_globals` (legal already) into force."""
    window = window_pages(s, i)
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        if window != s.window[i]:
            s.slot_dirty[i, r] = 1
        if decoding(s, i, r):
            seal_outside(s, i, r)
    s.window[i] = window
    age_victims(s, i)
    if _asks(s, i):
        _steer_live(s, i)
    _compress_cached(s, i)
    _limit_cached(s, i)
    rebalance_if_due(s, i)
