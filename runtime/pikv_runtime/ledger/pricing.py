"""The model clock: what one iteration costs, from prices and from what the ledger says will be read."""

from __future__ import annotations

from pikv_runtime.contract import GlobalControl
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import Ledger, Price, Tally
from pikv_runtime.ledger.sums import part_of
from pikv_runtime.ledger.utility import decoding, window_start


@jit
def count_reads(s: Ledger, i: int, r: int) -> None:
    """Recount the page-layers that slot `r` holds: always-on and others, by rank and codec; and its part of the bytes
    of the others."""
    for kind in range(2):
        for rank in range(s.ranks):
            for codec in range(s.slot_reads.shape[4]):
                s.slot_reads[i, r, kind, rank, codec] = 0
    s.slot_parts[i, r] = 0
    recent = window_start(s, i, r)
    for layer in range(s.layers):
        live, ranks, codecs = s.page_live[i, r, layer], s.page_rank[i, r, layer], s.page_codec[i, r, layer]
        refs = s.page_refs[i, r, layer]
        for p in range(s.slot_pages[i, r]):
            if live[p] == 1:
                kind = 0 if p < s.sink_pages or p >= recent else 1
                s.slot_reads[i, r, kind, ranks[p], codecs[p]] += 1
                s.slot_parts[i, r] += part_of(s, codecs[p], refs[p]) if kind == 1 else 0
    s.slot_dirty[i, r] = 0


@jit
def _read_s(s: Ledger, i: int, r: int, rank: int, fan_out: float) -> float:
    """Seconds that `rank` spends on attention for a decode step of slot `r`, and on choosing where not all is read."""
    seconds = 0.0
    others = 0
    for codec in range(s.slot_reads.shape[4]):
        price = s.prices[i, Price.READ_NATIVE + codec]
        seconds += price * s.slot_reads[i, r, 0, rank, codec]
        seconds += price * s.slot_reads[i, r, 1, rank, codec] * fan_out
        others += s.slot_reads[i, r, 1, rank, codec]
    if s.sparse == 1 and fan_out < 1.0:
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
    parts = iteration_parts(s, i)
    charge(s, i, parts)
    total = seconds_of(parts) + s.pending_s[i]
    s.pending_s[i] = 0.0
    return total


@jit
def iteration_parts(s: Ledger, i: int) -> tuple[float, float, float, float, float]:
    """(weights, prefill, attention, link) seconds of the planned iteration, and its bytes between ranks."""
    fan_out = s.control_globals[i, GlobalControl.FAN_OUT] if s.sparse == 1 else 1.0
    for part in range(3):
        for rank in range(s.ranks):
            s.rank_s[i, part, rank] = 0.0
    wire = 0.0
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        tokens = s.slot_plan[i, r]
        if tokens == 0:
            continue
        if s.slot_dirty[i, r] == 1:
            count_reads(s, i, r)
        owner = s.slot_owner[i, r]
        if decoding(s, i, r):
            s.rank_s[i, 1, owner] += s.prices[i, Price.DECODE_TOKEN]
            for rank in range(s.ranks):
                s.rank_s[i, 2, rank] += _read_s(s, i, r, rank, fan_out)
        else:
            pairs = tokens * (s.slot_tokens[i, r] + 0.5 * tokens)
            seconds = tokens * s.prices[i, Price.PREFILL_TOKEN] + pairs * s.prices[i, Price.PREFILL_PAIR]
            s.rank_s[i, 0, owner] += seconds
        if s.ranks > 1:
            wire += _query_bytes(s, i, r, tokens)
    return _slowest(s, i, wire)


@jit
def _slowest(s: Ledger, i: int, wire: float) -> tuple[float, float, float, float, float]:
    """Lockstep: the slowest rank decides; its parts are the ones that count."""
    slowest, longest = 0, -1.0
    for rank in range(s.ranks):
        here = s.rank_s[i, 0, rank] + s.rank_s[i, 1, rank] + s.rank_s[i, 2, rank]
        if here > longest:
            slowest, longest = rank, here
    prefill, decode, attention = s.rank_s[i, 0, slowest], s.rank_s[i, 1, slowest], s.rank_s[i, 2, slowest]
    link = 0.0
    if s.ranks > 1:
        link = 2.0 * s.layers * s.prices[i, Price.COLLECTIVE] + wire / s.ranks * s.prices[i, Price.LINK_BYTE]
    return s.prices[i, Price.STEP] + decode, prefill, attention, link, wire


@jit
def seconds_of(parts: tuple[float, float, float, float, float]) -> float:
    """Seconds of an iteration from its parts."""
    return parts[0] + parts[1] + parts[2] + parts[3]


@jit
def charge(s: Ledger, i: int, parts: tuple[float, float, float, float, float]) -> None:
    """Add the parts of an iteration to `tally`."""
    s.tally[i, Tally.WEIGHTS_S] += parts[0]
    s.tally[i, Tally.PREFILL_S] += parts[1]
    s.tally[i, Tally.ATTENTION_S] += parts[2]
    s.tally[i, Tally.LINK_S] += parts[3]
    s.tally[i, Tally.LINK_BYTES] += parts[4]
