"""What may happen to one physical page: allocate, demote, move, free. Every byte is counted here."""

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
def _add_bytes(s: Ledger, i: int, block: int, rank: int, delta: int) -> None:
    s.bytes_rank[i, rank] += delta
    if s.block_cached[i, block] == 1:
        s.cached_bytes[i, rank] += delta


@jit
def _touch_users(s: Ledger, i: int, block: int, layer: int) -> None:
    """Tell every slot that lists a page that changed: its reads must be counted again, and if the page lies below the
    top rung now, what is computed over it is not exact."""
    if s.block_users[i, block] == 0:
        return
    depth, lossy = s.block_depth[i, block], s.block_codec[i, block, layer] > s.top_codec
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        if s.page_block[i, r, depth] == block:
            s.slot_dirty[i, r] = 1
            if lossy:
                s.slot_lossy[i, r] = 1


@jit
def home_of(s: Ledger, tag: int, owner: int) -> int:
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
    s.bytes_rank[i, rank] += s.codec_bytes[NATIVE]


@jit
def free(s: Ledger, i: int, block: int, layer: int) -> None:
    """Free page (block, layer)."""
    codec = s.block_codec[i, block, layer]
    rank = s.block_rank[i, block, layer]
    _add_bytes(s, i, block, rank, -s.codec_bytes[codec])
    s.block_codec[i, block, layer] = -1
    _emit(s, i, Event.FREE, block, layer, codec, rank)


@jit
def recode(s: Ledger, i: int, block: int, layer: int, codec: int) -> None:
    """Store page (block, layer) under `codec`, a lower rung."""
    before = s.block_codec[i, block, layer]
    delta = s.codec_bytes[codec] - s.codec_bytes[before]
    _add_bytes(s, i, block, s.block_rank[i, block, layer], delta)
    s.block_codec[i, block, layer] = codec
    s.pending_s[i] += s.prices[i, Price.ENCODE_PAGE] / s.ranks
    s.tally[i, Tally.CODEC_S] += s.prices[i, Price.ENCODE_PAGE] / s.ranks
    s.tally[i, Tally.ENCODED_PAGES] += 1
    _emit(s, i, Event.ENCODE, block, layer, before, codec)
    _touch_users(s, i, block, layer)


@jit
def move(s: Ledger, i: int, block: int, layer: int, home: int) -> None:
    """Send page (block, layer) to rank `home`, where the caller has made room."""
    size = s.codec_bytes[s.block_codec[i, block, layer]]
    here = s.block_rank[i, block, layer]
    _add_bytes(s, i, block, here, -size)
    _add_bytes(s, i, block, home, size)
    s.block_rank[i, block, layer] = home
    seconds = size * s.prices[i, Price.LINK_BYTE] / s.ranks
    s.pending_s[i] += seconds
    s.tally[i, Tally.LINK_S] += seconds
    s.tally[i, Tally.LINK_BYTES] += size
    _emit(s, i, Event.MOVE, block, layer, here, home)
    _touch_users(s, i, block, layer)
