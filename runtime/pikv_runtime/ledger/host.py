"""The host tier: evicted blocks keep their pages in host memory until a prompt asks for them or others need the room.

Host memory is bounded by rank. The oldest by last use leave it first, deepest block first among equals, so that what
stays of a chain can be found. A heap holds blocks in this order; entries of blocks that left are passed over.
"""

from __future__ import annotations

from pikv_runtime.ledger.blocks import from_cache, unindex
from pikv_runtime.ledger.heap import heapify, pop, push
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import free_host, swap_in, swap_out
from pikv_runtime.ledger.state import HELD, IN_HOST, ON_DEVICE, Ledger, Tally

DEEPEST = 1 << 24
ANY_RANK = -1


@jit
def bytes_on(s: Ledger, i: int, block: int, rank: int) -> int:
    """Bytes of the block's pages that belong to `rank`."""
    total = 0
    for layer in range(s.layers):
        if s.block_rank[i, block, layer] == rank:
            total += s.codec_bytes[s.block_codec[i, block, layer]]
    return total


@jit
def _entry(s: Ledger, i: int, block: int) -> int:
    """Name of a block in the heap: equal values go deepest block first, then by slot."""
    return ((DEEPEST - s.block_depth[i, block]) << 32) | block


@jit
def _named(entry: int) -> int:
    return entry & 0xFFFFFFFF


@jit
def _holds(s: Ledger, i: int, value: float, entry: int) -> bool:
    """Whether an entry tells the truth: its block is in the host and was not used since."""
    block = _named(entry)
    return s.block_host[i, block] == IN_HOST and s.block_last_s[i, block] == value and _entry(s, i, block) == entry


@jit
def _queue(s: Ledger, i: int, block: int) -> None:
    """The block is in the host from now on, and may have to leave it."""
    s.block_host[i, block] = IN_HOST
    s.host_count[i] += 1
    count = s.host_queued[i]
    if count < s.host_order.shape[1]:
        push(s.host_value[i], s.host_order[i], count, s.block_last_s[i, block], _entry(s, i, block))
        s.host_queued[i] = count + 1
        return
    values, order, count = s.host_value[i], s.host_order[i], count - count  # full of entries that are passed over
    for b in range(s.block_host.shape[1]):
        if s.block_host[i, b] == IN_HOST:
            values[count], order[count] = s.block_last_s[i, b], _entry(s, i, b)
            count += 1
    heapify(values, order, count)
    s.host_queued[i] = count


@jit
def _oldest(s: Ledger, i: int, rank: int) -> int:
    """Take the oldest block with bytes on `rank` (or on any) out of the order, or -1 if there is none."""
    values, order, before = s.host_value[i], s.host_order[i], s.host_queued[i]
    count, found = before, -1
    while count > 0 and found < 0:
        value, entry = values[0], pop(values, order, count)
        count -= 1
        block = _named(entry)
        if _holds(s, i, value, entry) and (rank == ANY_RANK or bytes_on(s, i, block, rank) > 0):
            found = block
    s.host_queued[i] = count
    # Popped entries lie behind the heap, the last one first: those that were passed over go back.
    for j in range(count + (1 if found >= 0 else 0), before):
        value, entry = values[j], order[j]
        if _named(entry) != found and _holds(s, i, value, entry):
            push(values, order, s.host_queued[i], value, entry)
            s.host_queued[i] += 1
    return found


@jit
def drop_hosted(s: Ledger, i: int, block: int) -> None:
    """Free the pages and the slot of a block in the host."""
    unindex(s, i, block)
    s.block_host[i, block] = ON_DEVICE
    s.host_count[i] -= 1
    for layer in range(s.layers):
        free_host(s, i, block, layer)
    s.free_slots[i, s.free_count[i]] = block
    s.free_count[i] += 1


@jit
def drop_oldest(s: Ledger, i: int) -> bool:
    """Drop the oldest block of the host. False if there is none."""
    block = _oldest(s, i, ANY_RANK)
    if block < 0:
        return False
    drop_hosted(s, i, block)
    return True


@jit
def _clear_host(s: Ledger, i: int, block: int) -> bool:
    """Make room in the host for a block of the device; only older ones leave for it."""
    for rank in range(s.ranks):
        if bytes_on(s, i, block, rank) > s.host_cap[i]:
            return False
    for rank in range(s.ranks):
        need = bytes_on(s, i, block, rank)
        while need > 0 and s.host_bytes[i, rank] + need > s.host_cap[i]:
            oldest = _oldest(s, i, rank)
            if oldest < 0:
                return False
            age = s.block_last_s[i, block] - s.block_last_s[i, oldest]
            if age < 0.0 or (age == 0.0 and s.block_depth[i, block] > s.block_depth[i, oldest]):
                s.host_count[i] -= 1
                _queue(s, i, oldest)
                return False
            drop_hosted(s, i, oldest)
    return True


@jit
def to_host(s: Ledger, i: int, block: int) -> bool:
    """Send a cached block to the host; it can still be found. False if it does not fit there."""
    if not _clear_host(s, i, block):
        return False
    from_cache(s, i, block)
    for layer in range(s.layers):
        swap_out(s, i, block, layer)
    _queue(s, i, block)
    s.tally[i, Tally.HOST_OUT_BLOCKS] += 1
    return True


@jit
def hold(s: Ledger, i: int, block: int) -> None:
    """Nobody may drop the block of the host while room is made for it."""
    s.block_host[i, block] = HELD
    s.host_count[i] -= 1


@jit
def let_go(s: Ledger, i: int, block: int) -> None:
    """A held block stays in the host after all."""
    _queue(s, i, block)


@jit
def from_host(s: Ledger, i: int, block: int) -> None:
    """Bring a held block back to the device, where the caller has made room; who brings it back uses it."""
    s.block_host[i, block] = ON_DEVICE
    for layer in range(s.layers):
        swap_in(s, i, block, layer)
    s.tally[i, Tally.HOST_IN_BLOCKS] += 1
