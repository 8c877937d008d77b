"""SIEVE (Zhang et al., "SIEVE is simpler than LRU", NSDI 2024).

One FIFO and a hand that walks from tail to head and starts over. A hit marks a block; the hand takes marks off and
gives up the first block without one. Nothing is ever moved. The hand passes over blocks in use and leaves their mark.
"""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.queues import FIRST, ahead, may_go, tail
from pikv_runtime.ledger.state import Ledger


@jit
def choose_sieve(s: Ledger, i: int, rank: int) -> int:
    """The block to give up; the hand stays on it, and moves on when it is taken out."""
    node = s.queue_hand[i]
    for _ in range(2 * s.queue_size[i, FIRST] + 1):  # one round takes the marks off, the next one finds somebody
        if node < 0:
            node = tail(s, i, FIRST)
        if may_go(s, i, node, rank):
            if s.queue_seen[i, node] == 0:
                s.queue_hand[i] = node
                return node
            s.queue_seen[i, node] = 0
        node = ahead(s, i, node)
    return -1
