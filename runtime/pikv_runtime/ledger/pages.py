"""What may happen to one physical page: allocate, demote, move, swap, free. Every byte is counted here."""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import NATIVE, Event, Ledger, Price, Tally
from pikv_runtime.ledger.sums import add_page, part_of
from pikv_runtime.ledger.utility import always_on
from pikv_runtime.shard_maps.base import LEAST_LOADED


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
    s.page_rank[i, r, layer, p] = reading_rank(s, i, r, block, layer)
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
def home_of(s: Ledger, i: int, block: int, layer: int) -> int:
    """Rank that page (block, layer), which is being sealed, belongs on by the lane's shard map."""
    tag, here = s.block_tag[i, block, layer], s.block_rank[i, block, layer]
    row = tag if tag >= 0 else s.experts
    home = s.shard_home[i, s.block_depth[i, block] % s.ranks, row, s.layer_group[layer]]
    if home >= 0:
        return home
    return _least_loaded(s, i, block, layer) if home == LEAST_LOADED else here


@jit
def _least_loaded(s: Ledger, i: int, block: int, layer: int) -> int:
    """The rank with the fewest bytes, this page apart; its own rank among equals, else the lowest."""
    best = s.block_rank[i, block, layer]
    least = s.bytes_rank[i, best] - s.codec_bytes[s.block_codec[i, block, layer]]
    for rank in range(s.ranks):
        if s.bytes_rank[i, rank] < least:
            best, least = rank, s.bytes_rank[i, rank]
    return best


@jit
def holds_copy(s: Ledger, i: int, block: int, layer: int, rank: int) -> bool:
    """Whether `rank` holds a further copy of page (block, layer)."""
    return s.block_copies.shape[1] > 0 and (s.block_copies[i, block, layer] >> rank) & 1 == 1


@jit
def copies_of(s: Ledger, i: int, block: int, layer: int) -> int:
    """Further copies of page (block, layer)."""
    count = 0
    if s.block_copies.shape[1] > 0 and s.block_copies[i, block, layer] != 0:
        for rank in range(s.ranks):
            count += 1 if holds_copy(s, i, block, layer, rank) else 0
    return count


@jit
def reading_rank(s: Ledger, i: int, r: int, block: int, layer: int) -> int:
    """The one rank on which slot `r` reads page (block, layer): its owner's copy if there is one, else slots take the
    holders in turn. One rank for each reader: no copy's attention mass counts twice."""
    home, owner = s.block_rank[i, block, layer], s.slot_owner[i, r]
    count = copies_of(s, i, block, layer)
    if count == 0 or holds_copy(s, i, block, layer, owner):
        return home if count == 0 else owner
    turn = r % (count + 1)
    for rank in range(s.ranks):
        if rank == home or holds_copy(s, i, block, layer, rank):
            if turn == 0:
                return rank
            turn -= 1
    return home


@jit
def _count_copies(s: Ledger, i: int, block: int, layer: int, delta: int) -> None:
    """Add `delta` bytes on every rank that holds a further copy."""
    for rank in range(s.ranks if copies_of(s, i, block, layer) > 0 else 0):
        if holds_copy(s, i, block, layer, rank):
            s.bytes_rank[i, rank] += delta
            s.copy_bytes[i, rank] += delta


@jit
def copy_page(s: Ledger, i: int, block: int, layer: int, rank: int) -> bool:
    """Keep a further copy of page (block, layer) on `rank` if it fits as things are: nothing is given up for it. The
    caller tells the page's users."""
    size, here = s.codec_bytes[s.block_codec[i, block, layer]], s.block_rank[i, block, layer]
    if rank == here or holds_copy(s, i, block, layer, rank):
        return True
    if s.bytes_rank[i, rank] + size > s.cap_bytes[i]:
        return False
    s.block_copies[i, block, layer] += 1 << rank
    s.bytes_rank[i, rank] += size
    s.copy_bytes[i, rank] += size
    _pay_link(s, i, size)
    _emit(s, i, Event.COPY, block, layer, here, rank)
    return True


@jit
def drop_copy(s: Ledger, i: int, block: int, layer: int, rank: int) -> None:
    """`rank` gives up its further copy of page (block, layer). The caller tells the page's users."""
    codec = s.block_codec[i, block, layer]
    s.block_copies[i, block, layer] -= 1 << rank
    s.bytes_rank[i, rank] -= s.codec_bytes[codec]
    s.copy_bytes[i, rank] -= s.codec_bytes[codec]
    _emit(s, i, Event.DROP, block, layer, codec, rank)


@jit
def drop_copies(s: Ledger, i: int, block: int, layer: int) -> None:
    """Only page (block, layer) itself stays."""
    for rank in range(s.ranks if copies_of(s, i, block, layer) > 0 else 0):
        if holds_copy(s, i, block, layer, rank):
            drop_copy(s, i, block, layer, rank)


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
    drop_copies(s, i, block, layer)
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
    _count_copies(s, i, block, layer, delta)
    s.block_codec[i, block, layer] = codec
    seconds = s.prices[i, Price.ENCODE_PAGE] * (1 + copies_of(s, i, block, layer)) / s.ranks
    s.pending_s[i] += seconds
    s.tally[i, Tally.CODEC_S] += seconds
    s.tally[i, Tally.ENCODED_PAGES] += 1
    _emit(s, i, Event.ENCODE, block, layer, before, codec)


@jit
def move(s: Ledger, i: int, block: int, layer: int, home: int) -> None:
    """Send page (block, layer), of which `home` has no copy, to rank `home`, where the caller has made room, and tells
    its users."""
    size = s.codec_bytes[s.block_codec[i, block, layer]]
    here = s.block_rank[i, block, layer]
    _add_bytes(s, i, block, here, -size)
    _add_bytes(s, i, block, home, size)
    s.block_rank[i, block, layer] = home
    _pay_link(s, i, size)
    _emit(s, i, Event.MOVE, block, layer, here, home)


@jit
def _pay_link(s: Ledger, i: int, size: int) -> None:
    """`size` bytes go from one rank to another; ranks send theirs side by side."""
    seconds = size * s.prices[i, Price.LINK_BYTE] / s.ranks
    s.pending_s[i] += seconds
    s.tally[i, Tally.LINK_S] += seconds
    s.tally[i, Tally.LINK_BYTES] += size


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
