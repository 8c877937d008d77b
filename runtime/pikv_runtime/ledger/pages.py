"""What may happen to one physical page: allocate, seal, demote, move, free. Every byte is counted here."""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import NATIVE, Event, Ledger, Price, Tally


@jit
def _emit(s: Ledger, i: int, kind: int, block: int, layer: int, before: int, after: int) -> None:
    if s.events.shape[1] == 0:  # the trace environment has no tensors
        return
    at = s.event_count[i]
    s.events[i, at, 0] = kind
    s.events[i, at, 1] = block
    s.events[i, at, 2] = layer
    s.events[i, at, 3] = before
    s.events[i, at, 4] = after
    s.event_count[i] = at + 1


@jit
def _add_bytes(s: Ledger, i: int, rank: int, delta: int, cached: int) -> None:
    s.bytes_rank[i, rank] += delta
    if cached == 1:
        s.cached_bytes[i, rank] += delta


@jit
def touch_users(s: Ledger, i: int, block: int) -> None:
    """Mark every slot that lists `block`: its read counts must be recomputed."""
    if s.block_users[i, block] == 0:
        return
    depth = s.block_depth[i, block]
    for r in range(s.slot_request.shape[1]):
        if s.slot_request[i, r] >= 0 and s.page_block[i, r, depth] == block:
            s.slot_dirty[i, r] = 1


@jit
def home_of(s: Ledger, i: int, tag: int, owner: int) -> int:
    """Rank that stores the shard of expert `tag` (`expert_home`); untagged pages stay with their owner."""
    if tag < 0:
        return owner
    return tag * s.ranks // s.experts


@jit
def place(s: Ledger, i: int, block: int, layer: int, rank: int) -> None:
    """Allocate page (block, layer) native on `rank`; the caller has made room."""
    s.block_codec[i, block, layer] = NATIVE
    s.block_rank[i, block, layer] = rank
    s.block_tag[i, block, layer] = -1
    _add_bytes(s, i, rank, s.codec_bytes[NATIVE], 0)


@jit
def free(s: Ledger, i: int, block: int, layer: int) -> None:
    """Free page (block, layer)."""
    codec = s.block_codec[i, block, layer]
    rank = s.block_rank[i, block, layer]
    _add_bytes(s, i, rank, -s.codec_bytes[codec], s.block_cached[i, block])
    s.block_codec[i, block, layer] = -1
    _emit(s, i, Event.FREE, block, layer, codec, rank)


@jit
def recode(s: Ledger, i: int, block: int, layer: int, codec: int) -> None:
    """Store page (block, layer) under `codec`, a lower rung."""
    before = s.block_codec[i, block, layer]
    delta = s.codec_bytes[codec] - s.codec_bytes[before]
    _add_bytes(s, i, s.block_rank[i, block, layer], delta, s.block_cached[i, block])
    s.block_codec[i, block, layer] = codec
    s.pending_s[i] += s.prices[i, Price.ENCODE_PAGE] / s.ranks
    s.tally[i, Tally.CODEC_S] += s.prices[i, Price.ENCODE_PAGE] / s.ranks
    s.tally[i, Tally.ENCODED_PAGES] += 1
    _emit(s, i, Event.ENCODE, block, layer, before, codec)
    touch_users(s, i, block)


@jit
def next_rung(s: Ledger, codec: int) -> int:
    """The next rung with fewer bytes, or -1 at the ladder's end."""
    for below in range(codec + 1, s.codec_bytes.shape[0]):
        if s.codec_bytes[below] < s.codec_bytes[codec]:
            return below
    return -1


@jit
def seal(s: Ledger, i: int, block: int) -> None:
    """Seal a full block: each page to the top rung, then to its home rank if that rank has room."""
    if s.block_sealed[i, block] == 1:
        return
    s.block_sealed[i, block] = 1
    for layer in range(s.layers):
        if s.block_codec[i, block, layer] < 0:
            continue
        if s.block_codec[i, block, layer] < s.top_codec:
            recode(s, i, block, layer, s.top_codec)
        here = s.block_rank[i, block, layer]
        home = home_of(s, i, s.block_tag[i, block, layer], here)
        if home != here:
            _move(s, i, block, layer, home)
    touch_users(s, i, block)


@jit
def _move(s: Ledger, i: int, block: int, layer: int, home: int) -> None:
    size = s.codec_bytes[s.block_codec[i, block, layer]]
    here = s.block_rank[i, block, layer]
    if s.bytes_rank[i, home] + size > s.cap_bytes[i]:
        s.tally[i, Tally.SPILLS] += 1
        return
    _add_bytes(s, i, here, -size, s.block_cached[i, block])
    _add_bytes(s, i, home, size, s.block_cached[i, block])
    s.block_rank[i, block, layer] = home
    seconds = size * s.prices[i, Price.LINK_BYTE] / s.ranks
    s.pending_s[i] += seconds
    s.tally[i, Tally.LINK_S] += seconds
    s.tally[i, Tally.LINK_BYTES] += size
    _emit(s, i, Event.MOVE, block, layer, here, home)
