"""S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023).

FIRST is the small FIFO S, which should hold a tenth of the cache; SECOND is the main FIFO M; the ghosts are those of S,
as many as M should hold. A hit adds to a count of at most 3. The tail of S moves to M, its count cleared, if it was hit
more than once, else it goes and is remembered; the tail of M goes back to its head, one count less, until one has
none. A block that is back while it is remembered joins M.
"""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.queues import (
    FIRST,
    GHOSTS,
    SECOND,
    add_ghost,
    ahead,
    may_go,
    resident,
    tail,
    to_head,
    unlink,
)
from pikv_runtime.ledger.state import Ledger

SMALL = 0.1  # share of the cache that S should hold
MOST_SEEN = 3


@jit
def _from_small(s: Ledger, i: int, rank: int) -> int:
    """Walk S from its tail: who was hit more than once moves to M, the first who was not may go. -1: there is none."""
    node = tail(s, i, FIRST)
    while node >= 0:
        onward = ahead(s, i, node)
        if may_go(s, i, node, rank):
            if s.queue_seen[i, node] <= 1:
                return node
            s.queue_seen[i, node] = 0
            to_head(s, i, SECOND, node)
        node = onward
    return -1


@jit
def _from_main(s: Ledger, i: int, rank: int) -> int:
    """Walk M from its tail: who was hit goes back to the head with one count less. -1: nobody in M may go."""
    for _ in range(MOST_SEEN + 1):  # after so many rounds every count has run out
        node = tail(s, i, SECOND)
        for _ in range(s.queue_size[i, SECOND]):
            onward = ahead(s, i, node)
            if may_go(s, i, node, rank):
                if s.queue_seen[i, node] == 0:
                    return node
                s.queue_seen[i, node] -= 1
                to_head(s, i, SECOND, node)
            node = onward
    return -1


@jit
def choose_s3fifo(s: Ledger, i: int, rank: int) -> int:
    """The block to give up."""
    block = -1
    if s.queue_size[i, FIRST] >= SMALL * resident(s, i):
        block = _from_small(s, i, rank)
    if block < 0:
        block = _from_main(s, i, rank)
    return block if block >= 0 else _from_small(s, i, rank)


@jit
def remember_s3fifo(s: Ledger, i: int, block: int) -> None:
    """The chosen block goes."""
    if s.queue_of[i, block] == FIRST:
        add_ghost(s, i, GHOSTS, s.block_hash[i, block], int((1.0 - SMALL) * resident(s, i)))
    unlink(s, i, block)
