"""The model clock: what one iteration costs, from prices and from what the ledger says will be read."""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import GlobalControl
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import Ledger, Price, Tally
from pikv_runtime.ledger.utility import always_on, decoding


@jit
def count_reads(s: Ledger, i: int, r: int) -> None:
    """Recount the page-layers that slot `r` holds: always-on and others, by rank and codec."""
    for kind in range(2):
        for rank in range(s.ranks):
            for codec in range(s.slot_reads.shape[4]):
                s.slot_reads[i, r, kind, rank, codec] = 0
    gone = 0
    for p in range(s.slot_pages[i, r]):
        block = s.page_block[i, r, p]
        kind = 0 if always_on(s, i, r, p) else 1
        for layer in range(s.layers):
            if s.page_live[i, r, p, layer] == 0:
                gone = 1
                continue
            codec = s.block_codec[i, block, layer]
            s.slot_reads[i, r, kind, s.block_rank[i, block, layer], codec] += 1
            if codec > s.top_codec:
                gone = 1
    if gone == 1:
        s.slot_lossy[i, r] = 1
    s.slot_dirty[i, r] = 0


@jit
def _read_s(s: Ledger, i: int, r: int, rank: int, fan_out: float) -> float:
    """Seconds that `rank` spends on attention for one decode step of slot `r`, selection included."""
    seconds = 0.0
    others = 0
    for codec in range(s.slot_reads.shape[4]):
        price = s.prices[i, Price.READ_NATIVE + codec]
        seconds += price * s.slot_reads[i, r, 0, rank, codec]
        seconds += price * s.slot_reads[i, r, 1, rank, codec] * fan_out
        others += s.slot_reads[i, r, 1, rank, codec]
    if s.sparse == 1:
        seconds += s.prices[i, Price.SELECT_PAGE] * others
    return seconds


@jit
def _query_bytes(s: Ledger, i: int, r: int, rows: int) -> float:
    """Bytes on the wire for `rows` query rows of slot `r`: every layer with pages on a remote rank."""
    remote = 0
    for rank in range(s.ranks):
        if rank == s.slot_owner[i, r]:
            continue
        held = 0
        for kind in range(2):
            for codec in range(s.slot_reads.shape[4]):
                held += s.slot_reads[i, r, kind, rank, codec]
        remote += min(held, s.layers)
    return remote * rows * s.prices[i, Price.QUERY_BYTES]


@jit
def price(s: Ledger, i: int) -> float:
    """Seconds of the planned iteration on the model clock; the parts are added to `tally`."""
    fan_out = s.control_globals[i, GlobalControl.FAN_OUT] if s.sparse == 1 else 1.0
    prefill = np.zeros(s.ranks)
    attention = np.zeros(s.ranks)
    decode = np.zeros(s.ranks)
    wire = 0.0
    for r in range(s.slot_request.shape[1]):
        tokens = s.slot_plan[i, r]
        if tokens == 0:
            continue
        if s.slot_dirty[i, r] == 1:
            count_reads(s, i, r)
        owner = s.slot_owner[i, r]
        if decoding(s, i, r):
            decode[owner] += s.prices[i, Price.DECODE_TOKEN]
            for rank in range(s.ranks):
                attention[rank] += _read_s(s, i, r, rank, fan_out)
        else:
            pairs = tokens * (s.slot_tokens[i, r] + 0.5 * tokens)
            prefill[owner] += tokens * s.prices[i, Price.PREFILL_TOKEN] + pairs * s.prices[i, Price.PREFILL_PAIR]
        if s.ranks > 1:
            wire += _query_bytes(s, i, r, tokens)
    return _total(s, i, prefill, decode, attention, wire)


@jit
def _total(s: Ledger, i: int, prefill, decode, attention, wire: float) -> float:  # type: ignore[no-untyped-def]
    """Lockstep: the slowest rank decides; its parts are the ones that count."""
    slowest = 0
    for rank in range(1, s.ranks):
        here = prefill[rank] + decode[rank] + attention[rank]
        if here > prefill[slowest] + decode[slowest] + attention[slowest]:
            slowest = rank
    link = 0.0
    if s.ranks > 1:
        link = 2.0 * s.layers * s.prices[i, Price.COLLECTIVE] + wire / s.ranks * s.prices[i, Price.LINK_BYTE]
        s.tally[i, Tally.LINK_BYTES] += wire
    step = s.prices[i, Price.STEP]
    s.tally[i, Tally.WEIGHTS_S] += step + decode[slowest]
    s.tally[i, Tally.PREFILL_S] += prefill[slowest]
    s.tally[i, Tally.ATTENTION_S] += attention[slowest]
    s.tally[i, Tally.LINK_S] += link
    total = step + prefill[slowest] + decode[slowest] + attention[slowest] + link + s.pending_s[i]
    s.pending_s[i] = 0.0
    return total
