"""2Q, full version (Johnson and Shasha, "2Q: A low overhead high performance buffer management replacement algorithm",
VLDB 1994).

FIRST is A1in, a FIFO of blocks seen once; SECOND is Am, in LRU order; the ghosts are A1out. A hit in A1in changes
nothing, a hit in Am moves the block to its head, and a block that is back while A1out remembers it joins Am. A1in gives
up its oldest while it holds more than Kin of the cache, else Am does; only what leaves A1in is remembered.
"""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.queues import (
    FIRST,
    GHOSTS,
    SECOND,
    add_ghost,
    oldest_of_two,
    resident,
    to_head,
    unlink,
)
from pikv_runtime.ledger.state import Ledger

K_IN = 0.25  # the paper's recommendation: a quarter of the cache
K_OUT = 0.5  # and ghosts for half of it


@jit
def touch_two_queue(s: Ledger, i: int, block: int) -> None:
    """A prompt found the block."""
    if s.queue_of[i, block] == SECOND:
        to_head(s, i, SECOND, block)


@jit
def choose_two_queue(s: Ledger, i: int, rank: int) -> int:
    """The block to give up."""
    return oldest_of_two(s, i, s.queue_size[i, FIRST] > K_IN * resident(s, i), rank)


@jit
def remember_two_queue(s: Ledger, i: int, block: int) -> None:
    """The chosen block goes."""
    if s.queue_of[i, block] == FIRST:
        add_ghost(s, i, GHOSTS, s.block_hash[i, block], int(K_OUT * resident(s, i)))
    unlink(s, i, block)
