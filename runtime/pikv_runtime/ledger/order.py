"""Which live pages an eviction or a demotion may choose from, and how one of them climbs down the ladder.

A page is named by its code r·2^40 + p·2^16 + layer, so that equal utilities go in order of slot, page and layer.
"""

from __future__ import annotations

import numpy as np

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import copy_fact, recode
from pikv_runtime.ledger.state import F8, I8, Ledger
from pikv_runtime.ledger.utility import decoding, page_utility, window_start


@jit
def group_of(s: Ledger, tag: int, layer: int) -> int:
    """Control group of pages with a tag; untagged ones belong to a nameless one after the last, which no control
    steers."""
    return tag * s.layer_groups + s.layer_group[layer] if tag >= 0 else s.control_groups.shape[1]


@jit
def decode_page(code: int) -> tuple[int, int, int]:
    """(slot, page, layer) of a page's code."""
    return code >> 40, (code >> 16) & 0xFFFFFF, code & 0xFFFF


@jit
def evictable_pages(s: Ledger, i: int) -> tuple[I8, I8]:
    """Codes and control groups of the live, sealed pages outside the always-on sets of decoding requests."""
    codes, count = np.empty(s.running_count[i] * s.page_block.shape[2] * s.layers, np.int64), 0
    groups = np.empty(codes.shape[0], np.int64)
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        if not decoding(s, i, r):
            continue
        for layer in range(s.layers):
            live, tags = s.page_live[i, r, layer], s.page_tag[i, r, layer]
            for p in range(s.sink_pages, min(window_start(s, i, r), s.slot_sealed[i, r])):
                if live[p] == 1:
                    codes[count] = (r << 40) | (p << 16) | layer
                    groups[count] = group_of(s, tags[p], layer)
                    count += 1
    return codes[:count], groups[:count]


@jit
def stored_bytes(s: Ledger, i: int, code: int) -> int:
    """Bytes of a live page."""
    r, p, layer = decode_page(code)
    return s.codec_bytes[s.page_codec[i, r, layer, p]]


@jit
def by_group(s: Ledger, i: int, codes: I8, groups: I8, room: I8) -> tuple[F8, I8, I8]:
    """Utilities and codes of the pages whose group has `room` (N + 1,), and where each group's begin (N + 2,)."""
    start = np.zeros(room.shape[0] + 1, np.int64)
    for g in range(room.shape[0]):
        start[g + 1] = start[g] + room[g]
    at = start.copy()
    values, ordered = np.empty(start[room.shape[0]]), np.empty(start[room.shape[0]], np.int64)
    for j in range(codes.shape[0]):
        g = groups[j]
        if room[g] > 0:
            r, p, layer = decode_page(codes[j])
            values[at[g]] = page_utility(s, i, r, p, layer)
            ordered[at[g]] = codes[j]
            at[g] += 1
    return values, ordered, start


@jit
def next_rung(s: Ledger, codec: int) -> int:
    """The next rung with fewer bytes, or -1 at the ladder's end."""
    for below in range(codec + 1, s.codec_bytes.shape[0]):
        if s.codec_bytes[below] < s.codec_bytes[codec]:
            return below
    return -1


@jit
def can_demote(s: Ledger, i: int, code: int) -> bool:
    """Whether there is a rung below, and nobody else holds the page: one request's group never demotes shared pages."""
    r, p, layer = decode_page(code)
    return next_rung(s, s.page_codec[i, r, layer, p]) >= 0 and s.block_users[i, s.page_block[i, r, p]] == 1


@jit
def demote(s: Ledger, i: int, code: int) -> int:
    """Demote a live page by one rung. Returns the bytes freed: 0 at the ladder's end, and for shared pages, which
    are never demoted by one request's group."""
    r, p, layer = decode_page(code)
    block = s.page_block[i, r, p]
    codec = s.page_codec[i, r, layer, p]
    rung = next_rung(s, codec)
    if rung < 0 or s.block_users[i, block] > 1:
        return 0
    recode(s, i, block, layer, rung)
    copy_fact(s, i, r, p, block, layer)
    return s.codec_bytes[codec] - s.codec_bytes[rung]
