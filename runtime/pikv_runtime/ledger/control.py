"""Applying a control at an interval's start: evict, climb down the ladder, keep cached blocks within their share."""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import GlobalControl, GroupControl
from pikv_runtime.ledger.blocks import evict_page
from pikv_runtime.ledger.commit import seal_outside
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import next_rung, recode
from pikv_runtime.ledger.pressure import evict_cached, may_demote
from pikv_runtime.ledger.state import F8, I8, Ledger, Tally
from pikv_runtime.ledger.utility import decoding, ordered_pages, refresh_victims


@jit
def _group_of(s: Ledger, i: int, block: int, layer: int) -> int:
    tag = s.block_tag[i, block, layer]
    return tag * s.layer_groups + s.layer_group[layer] if tag >= 0 else -1


@jit
def _group_bytes(s: Ledger, i: int, order: I8) -> tuple[F8, F8]:
    """Stored and bf16 bytes of the evictable pages, by group."""
    groups = s.control_groups.shape[1]
    stored = np.zeros(groups)
    dense = np.zeros(groups)
    pages, layers = s.page_block.shape[2], s.layers
    for code in order:
        block = s.page_block[i, code // layers // pages, code // layers % pages]
        g = _group_of(s, i, block, code % layers)
        if g >= 0:
            stored[g] += s.codec_bytes[s.block_codec[i, block, code % layers]]
            dense[g] += s.bf16_bytes
    return stored, dense


@jit
def _evict_live(s: Ledger, i: int, order: I8, stored: F8, dense: F8) -> None:
    """Free `evict_fraction` of each group's evictable live bytes, lowest utility first."""
    pages, layers = s.page_block.shape[2], s.layers
    quota = stored * s.control_groups[i, :, GroupControl.EVICT_FRACTION]
    for code in order:
        r, p, layer = code // layers // pages, code // layers % pages, code % layers
        block = s.page_block[i, r, p]
        g = _group_of(s, i, block, layer)
        if g < 0:
            continue
        size = s.codec_bytes[s.block_codec[i, block, layer]]
        if size > quota[g]:
            continue
        quota[g] -= size
        stored[g] -= size
        dense[g] -= s.bf16_bytes
        evict_page(s, i, r, p, layer)


@jit
def _compress_live(s: Ledger, i: int, order: I8, stored: F8, dense: F8) -> None:
    """Demote, lowest utility first and one rung a pass, until each group's mean ratio reaches what was asked."""
    pages, layers = s.page_block.shape[2], s.layers
    for _ in range(s.codec_bytes.shape[0]):
        for code in order:
            r, p, layer = code // layers // pages, code // layers % pages, code % layers
            block = s.page_block[i, r, p]
            g = _group_of(s, i, block, layer)
            if g < 0 or s.page_live[i, r, p, layer] == 0:
                continue
            if stored[g] * s.control_groups[i, g, GroupControl.COMPRESSION_RATIO] <= dense[g]:
                continue
            codec = s.block_codec[i, block, layer]
            rung = next_rung(s, codec)
            if rung < 0 or not may_demote(s, i, block):
                continue
            stored[g] -= s.codec_bytes[codec] - s.codec_bytes[rung]
            recode(s, i, block, layer, rung)


@jit
def _count_vetoes(s: Ledger, i: int, stored: F8, dense: F8) -> None:
    """Groups whose asked ratio the ladder could not reach (by more than one page)."""
    for g in range(stored.shape[0]):
        if dense[g] <= 0.0:
            continue
        s.tally[i, Tally.ASKED] += 1
        asked = dense[g] / s.control_groups[i, g, GroupControl.COMPRESSION_RATIO]
        if stored[g] > asked + s.codec_bytes[s.top_codec]:
            s.tally[i, Tally.VETOES] += 1


@jit
def _compress_cached(s: Ledger, i: int) -> None:
    """Demote cached blocks, lowest utility first, until their mean ratio reaches `cached_ratio`."""
    ratio = s.control_globals[i, GlobalControl.CACHED_RATIO]
    if ratio <= 1.0:
        return
    refresh_victims(s, i)
    count = s.victim_next[i, 1]
    stored = float(s.cached_bytes[i].sum())
    dense = float(count * s.layers * s.bf16_bytes)
    for _ in range(s.codec_bytes.shape[0]):
        for j in range(count):
            if stored * ratio <= dense:
                return
            block = s.victims[i, j]
            for layer in range(s.layers):
                codec = s.block_codec[i, block, layer]
                rung = next_rung(s, codec)
                if rung >= 0:
                    stored -= s.codec_bytes[codec] - s.codec_bytes[rung]
                    recode(s, i, block, layer, rung)


@jit
def _limit_cached(s: Ledger, i: int) -> None:
    limit = s.control_globals[i, GlobalControl.CACHED_SHARE] * float(s.cap_bytes[i]) * s.ranks
    while s.cached_bytes[i].sum() > limit:
        if not evict_cached(s, i, -1):
            return


@jit
def apply_control(s: Ledger, i: int) -> None:
    """Put the control in `control_groups` and `control_globals` (legal already) into force."""
    for r in range(s.slot_request.shape[1]):
        if decoding(s, i, r):
            s.slot_dirty[i, r] = 1  # the window may have changed
            seal_outside(s, i, r)
    s.victim_next[i, 1] = 0  # block utilities may weigh otherwise now
    lossy = False
    for g in range(s.control_groups.shape[1]):
        if s.control_groups[i, g, GroupControl.EVICT_FRACTION] > 0.0:
            lossy = True
        if s.control_groups[i, g, GroupControl.COMPRESSION_RATIO] > 1.0:
            lossy = True
    if lossy:
        order = ordered_pages(s, i)
        stored, dense = _group_bytes(s, i, order)
        _evict_live(s, i, order, stored, dense)
        _compress_live(s, i, order, stored, dense)
        _count_vetoes(s, i, stored, dense)
    _compress_cached(s, i)
    _limit_cached(s, i)
