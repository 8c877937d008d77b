"""ARC (Megiddo and Modha, "ARC: A self-tuning, low overhead replacement cache", FAST 2003).

FIRST and SECOND are T1 (seen once) and T2 (seen again), both in LRU order; GHOSTS and OTHER_GHOSTS are B1 and B2. A hit
moves a block to the head of T2. A block that is back while B1 remembers it raises the target p of T1, by B2/B1 if that
is more than one; one that B2 remembers lowers it, by B1/B2; both join T2. T1 gives up its oldest while it holds more
than p, else T2 does. Two things differ, since room is made for a whole prompt before its blocks are there: the cache's
size c is the blocks resident now, and the paper's tie for a block in B2 (|T1| = p) cannot be known.
"""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.queues import (
    FIRST,
    GHOSTS,
    OTHER_GHOSTS,
    SECOND,
    add_ghost,
    drop_ghost,
    find_ghost,
    oldest_of_two,
    push_head,
    resident,
    to_head,
    trim_ghosts,
    unlink,
)
from pikv_runtime.ledger.state import Ledger


@jit
def _adapt(s: Ledger, i: int, which: int) -> None:
    """A ghost of list `which` came back: whatever would have kept it gets more of the cache."""
    ones, others = float(s.queue_size[i, GHOSTS]), float(s.queue_size[i, OTHER_GHOSTS])
    if which == GHOSTS:
        s.queue_target[i] = min(float(resident(s, i)), s.queue_target[i] + max(1.0, others / ones))
    else:
        s.queue_target[i] = max(0.0, s.queue_target[i] - max(1.0, ones / others))


@jit
def join_arc(s: Ledger, i: int, block: int) -> None:
    """A block becomes cached for the first time; if it was hit before that, it has been seen twice."""
    ghost = find_ghost(s, i, s.block_hash[i, block])
    again = ghost >= 0 or s.queue_seen[i, block] > 0
    if ghost >= 0:
        _adapt(s, i, s.queue_of[i, ghost])
        drop_ghost(s, i, ghost)
    push_head(s, i, SECOND if again else FIRST, block)


@jit
def touch_arc(s: Ledger, i: int, block: int) -> None:
    """A prompt found the block."""
    if s.queue_of[i, block] != 0:
        to_head(s, i, SECOND, block)


@jit
def choose_arc(s: Ledger, i: int, rank: int) -> int:
    """The block to give up."""
    return oldest_of_two(s, i, s.queue_size[i, FIRST] > s.queue_target[i], rank)


@jit
def remember_arc(s: Ledger, i: int, block: int) -> None:
    """The chosen block goes. |T1| + |B1| stays within c, and all four lists within 2c."""
    c, ones = resident(s, i), s.queue_of[i, block] == FIRST
    unlink(s, i, block)
    if ones:
        add_ghost(s, i, GHOSTS, s.block_hash[i, block], c - s.queue_size[i, FIRST])
    else:
        add_ghost(s, i, OTHER_GHOSTS, s.block_hash[i, block], 2 * c)
    trim_ghosts(s, i, GHOSTS, c - s.queue_size[i, FIRST])
    trim_ghosts(s, i, OTHER_GHOSTS, 2 * c - resident(s, i) - s.queue_size[i, GHOSTS])
