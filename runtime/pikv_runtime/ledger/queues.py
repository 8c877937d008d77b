"""Doubly linked lists over block slots, and over ghosts (hashes of blocks that went), for the block rules that keep
queues instead of a heap.

Nodes are block slots [0, B), ghosts [B, 2B), and one sentinel per list after them. A list runs from its head, where
blocks join, to its tail. Blocks in use keep their place and are passed over. The arrays have no size in ledgers where
no lane has such a rule (`rule_room.py`).
"""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import on_rank
from pikv_runtime.ledger.state import Ledger, RuleCode

NOWHERE, FIRST, SECOND, GHOSTS, OTHER_GHOSTS, SPARE = range(6)  # lists; SPARE holds the ghosts that are free
LISTS = 6


@jit
def queued(s: Ledger, i: int) -> bool:
    """Whether the lane's rule keeps queues."""
    return s.block_rule[i] >= RuleCode.FIFO and s.block_rule[i] <= RuleCode.ARC


@jit
def _end(s: Ledger, which: int) -> int:
    """Sentinel of a list."""
    return 2 * s.block_cached.shape[1] + which


@jit
def clear_queues(s: Ledger, i: int) -> None:
    """Empty all lists of the lane and forget all ghosts."""
    blocks = s.block_cached.shape[1]
    for node in range(blocks):
        s.queue_of[i, node] = NOWHERE
        s.queue_seen[i, node] = 0
    for which in range(LISTS):
        end = _end(s, which)
        s.queue_next[i, end] = s.queue_prev[i, end] = end
        s.queue_size[i, which] = 0
    for bucket in range(s.ghost_bucket.shape[1]):
        s.ghost_bucket[i, bucket] = -1
    for node in range(2 * blocks - 1, blocks - 1, -1):
        push_head(s, i, SPARE, node)
    s.queue_hand[i] = -1
    s.queue_target[i] = 0.0


@jit
def push_head(s: Ledger, i: int, which: int, node: int) -> None:
    """Put a node that is in no list at the head of one."""
    end = _end(s, which)
    first = s.queue_next[i, end]
    s.queue_next[i, node], s.queue_prev[i, node] = first, end
    s.queue_prev[i, first] = s.queue_next[i, end] = node
    s.queue_of[i, node] = which
    s.queue_size[i, which] += 1


@jit
def unlink(s: Ledger, i: int, node: int) -> None:
    """Take a node out of its list; no effect if it is in none. The hand moves on if it pointed there."""
    which = s.queue_of[i, node]
    if which == NOWHERE:
        return
    before, after = s.queue_prev[i, node], s.queue_next[i, node]
    s.queue_next[i, before], s.queue_prev[i, after] = after, before
    s.queue_of[i, node] = NOWHERE
    s.queue_size[i, which] -= 1
    if s.queue_hand[i] == node:
        s.queue_hand[i] = before if before < s.block_cached.shape[1] else -1


@jit
def to_head(s: Ledger, i: int, which: int, node: int) -> None:
    """Move a node to the head of a list, from wherever it is."""
    unlink(s, i, node)
    push_head(s, i, which, node)


@jit
def tail(s: Ledger, i: int, which: int) -> int:
    """Last node of a list, or -1."""
    node = s.queue_prev[i, _end(s, which)]
    return node if node < 2 * s.block_cached.shape[1] else -1


@jit
def ahead(s: Ledger, i: int, node: int) -> int:
    """The next node towards the head, or -1."""
    node = s.queue_prev[i, node]
    return node if node < 2 * s.block_cached.shape[1] else -1


@jit
def may_go(s: Ledger, i: int, block: int, rank: int) -> bool:
    """Whether the block is cached (nobody uses it) and has bytes on `rank` (-1: on any)."""
    return s.block_cached[i, block] == 1 and (rank < 0 or on_rank(s, i, block, rank))


@jit
def oldest(s: Ledger, i: int, which: int, rank: int) -> int:
    """The block nearest to the tail of a list that may go, or -1."""
    node = tail(s, i, which)
    while node >= 0 and not may_go(s, i, node, rank):
        node = ahead(s, i, node)
    return node


@jit
def oldest_of_two(s: Ledger, i: int, first: bool, rank: int) -> int:
    """The oldest that may go of FIRST, or else of SECOND; the other way round where not `first`. -1: there is none."""
    block = oldest(s, i, FIRST if first else SECOND, rank)
    return block if block >= 0 else oldest(s, i, SECOND if first else FIRST, rank)


@jit
def resident(s: Ledger, i: int) -> int:
    """Blocks in the two lists of resident blocks: what the rules call the size of the cache."""
    return s.queue_size[i, FIRST] + s.queue_size[i, SECOND]


@jit
def _bucket(s: Ledger, key: int) -> int:
    return ((key >> 17) ^ key) & (s.ghost_bucket.shape[1] - 1)  # block hashes are uniform already


@jit
def find_ghost(s: Ledger, i: int, key: int) -> int:
    """Node of the ghost of `key`, or -1."""
    node = s.ghost_bucket[i, _bucket(s, key)]
    while node >= 0 and s.ghost_key[i, node - s.block_cached.shape[1]] != key:
        node = s.ghost_chain[i, node - s.block_cached.shape[1]]
    return node


@jit
def drop_ghost(s: Ledger, i: int, node: int) -> None:
    """Forget a ghost."""
    blocks = s.block_cached.shape[1]
    after, bucket = s.ghost_chain[i, node - blocks], _bucket(s, s.ghost_key[i, node - blocks])
    at = s.ghost_bucket[i, bucket]
    if at == node:
        s.ghost_bucket[i, bucket] = after
    else:
        while s.ghost_chain[i, at - blocks] != node:
            at = s.ghost_chain[i, at - blocks]
        s.ghost_chain[i, at - blocks] = after
    to_head(s, i, SPARE, node)


@jit
def add_ghost(s: Ledger, i: int, which: int, key: int, most: int) -> None:
    """Remember `key` at the head of a ghost list, which keeps its last `most`."""
    known = find_ghost(s, i, key)
    if known >= 0:
        drop_ghost(s, i, known)
    trim_ghosts(s, i, which, most - 1)
    node = tail(s, i, SPARE)
    if most < 1 or node < 0:
        return
    bucket = _bucket(s, key)
    s.ghost_key[i, node - s.block_cached.shape[1]] = key
    s.ghost_chain[i, node - s.block_cached.shape[1]] = s.ghost_bucket[i, bucket]
    s.ghost_bucket[i, bucket] = node
    to_head(s, i, which, node)


@jit
def trim_ghosts(s: Ledger, i: int, which: int, most: int) -> None:
    """Forget the oldest of a ghost list until `most` are left."""
    while s.queue_size[i, which] > max(most, 0):
        drop_ghost(s, i, tail(s, i, which))


@jit
def join_remembered(s: Ledger, i: int, block: int) -> None:
    """A block becomes cached for the first time: it joins SECOND if a ghost remembers it, which goes, else FIRST."""
    ghost = find_ghost(s, i, s.block_hash[i, block])
    if ghost >= 0:
        drop_ghost(s, i, ghost)
    push_head(s, i, SECOND if ghost >= 0 else FIRST, block)
