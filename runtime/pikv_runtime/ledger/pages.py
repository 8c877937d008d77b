"""What may happen to one physical page: allocate, demote, move, swap, free. Every byte is counted here."""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import NATIVE, Event, Ledger, Price, Tally
from pikv_runtime.ledger.sums import add_page, part_of
from pikv_runtime.ledger.utility import always_on


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
def count_page(s: Ledger, i: int, r: int, p: int, layer: int, kind: int, delta: int) -> None:
    """Add a live page of slot `r` to the reads of a kind (0 always-on, 1 others), or take it off."""
    if s.slot_dirty[i, r] == 0 and s.page_live[i, r, layer, p] == 1:  # a dirty slot is counted again anyway
        codec = s.page_codec[i, r, layer, p]
        s.slot_reads[i, r, kind, s.page_rank[i, r, layer, p], codec] += delta
        if kind == 1:
            s.slot_parts[i, r] += delta * part_of(s, codec, s.page_refs[i, r, layer, p])


@jit
def copy_facts(s: Ledger, i: int, r: int, p: int, block: int) -> None:
    """Copy what the block says of its pages to page `p` of slot `r`, which lists it. If a page lies below the top
    rung, what is computed over it is not exact."""
    for layer in range(s.layers):
        copy_fact(s, i, r, p, block, layer)


@jit
def copy_fact(s: Ledger, i: int, r: int, p: int, block: int, layer: int) -> None:
    """`copy_facts` for one layer."""
    kind, codec = 0 if always_on(s, i, r, p) else 1, s.block_codec[i, block, layer]
    tag, error = s.block_tag[i, block, layer], s.block_error[i, block, layer, max(codec, 0)]
    count_page(s, i, r, p, layer, kind, -1)
    before = s.page_codec[i, r, layer, p], s.page_tag[i, r, layer, p], s.page_error[i, r, layer, p]
    summed = before != (codec, tag, error)
    if summed:
        add_page(s, i, r, p, layer, -1)
    write_fact(s, i, r, p, block, layer)
    if summed:
        add_page(s, i, r, p, layer, 1)
    count_page(s, i, r, p, layer, kind, 1)


@jit
def on_rank(s: Ledger, i: int, block: int, rank: int) -> bool:
    """Whether some layer's page of the block lies on `rank`."""
    for layer in range(s.layers):
        if s.block_rank[i, block, layer] == rank:
            return True
    return False


@jit
def write_fact(s: Ledger, i: int, r: int, p: int, block: int, layer: int) -> None:
    """Copy a page's facts and count nothing."""
    codec = s.block_codec[i, block, layer]
    s.page_codec[i, r, layer, p] = codec
    s.page_rank[i, r, layer, p] = s.block_rank[i, block, layer]
    s.page_tag[i, r, layer, p] = s.block_tag[i, block, layer]
    s.page_refs[i, r, layer, p] = s.block_refs[i, block, layer]
    s.page_error[i, r, layer, p] = s.block_error[i, block, layer, max(codec, 0)]
    if codec > s.top_codec:
        s.slot_lossy[i, r] = 1


@jit
def tell_users(s: Ledger, i: int, block: int) -> None:
    """A page of the block changed: every slot that lists it copies its facts."""
    users, depth = s.block_users[i, block], s.block_depth[i, block]
    for k in range(s.running_count[i]):
        if users == 0:
            return
        r = s.running[i, k]
        if s.page_block[i, r, depth] == block:
            copy_facts(s, i, r, depth, block)
            users -= 1


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
    """Store page (block, layer) under `codec`, a lower rung; the caller tells its users."""
    before = s.block_codec[i, block, layer]
    delta = s.codec_bytes[codec] - s.codec_bytes[before]
    _add_bytes(s, i, block, s.block_rank[i, block, layer], delta)
    s.block_codec[i, block, layer] = codec
    s.pending_s[i] += s.prices[i, Price.ENCODE_PAGE] / s.ranks
    s.tally[i, Tally.CODEC_S] += s.prices[i, Price.ENCODE_PAGE] / s.ranks
    s.tally[i, Tally.ENCODED_PAGES] += 1
    _emit(s, i, Event.ENCODE, block, layer, before, codec)


@jit
def move(s: Ledger, i: int, block: int, layer: int, home: int) -> None:
    """Send page (block, layer) to rank `home`, where the caller has made room, and tells its users."""
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


@jit
def _pay_host(s: Ledger, i: int, size: int) -> None:
    """`size` bytes go between device and host; ranks move theirs side by side."""
    seconds = size * s.prices[i, Price.HOST_BYTE] / s.ranks
    s.pending_s[i] += seconds
    s.tally[i, Tally.HOST_S] += seconds
    s.tally[i, Tally.HOST_BYTES] += size


@jit
def swap_out(s: Ledger, i: int, block: int, layer: int) -> None:
    """Send page (block, layer) of a block without users to its rank's host memory, where the caller has made room."""
    codec, rank = s.block_codec[i, block, layer], s.block_rank[i, block, layer]
    size = s.codec_bytes[codec]
    _add_bytes(s, i, block, rank, -size)
    s.host_bytes[i, rank] += size
    _pay_host(s, i, size)
    _emit(s, i, Event.SWAP_OUT, block, layer, codec, rank)


@jit
def swap_in(s: Ledger, i: int, block: int, layer: int) -> None:
    """Bring page (block, layer) back to the device of its rank, where the caller has made room."""
    codec, rank = s.block_codec[i, block, layer], s.block_rank[i, block, layer]
    size = s.codec_bytes[codec]
    s.host_bytes[i, rank] -= size
    _add_bytes(s, i, block, rank, size)
    _pay_host(s, i, size)
    _emit(s, i, Event.SWAP_IN, block, layer, codec, rank)


@jit
def free_host(s: Ledger, i: int, block: int, layer: int) -> None:
    """Free page (block, layer) in host memory."""
    codec, rank = s.block_codec[i, block, layer], s.block_rank[i, block, layer]
    s.host_bytes[i, rank] -= s.codec_bytes[codec]
    s.block_codec[i, block, layer] = -1
    _emit(s, i, Event.FREE, block, layer, codec, rank)
