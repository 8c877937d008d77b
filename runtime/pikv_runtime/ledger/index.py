"""Hash index of shareable blocks: open addressing, linear probing, deletion by backward shift."""

from __future__ import annotations

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.prefetch import fetch_item
from pikv_runtime.ledger.state import Ledger


@jit
def _home(key: int, mask: int) -> int:
    return ((key >> 17) ^ key) & mask  # block hashes are uniform already


@jit
def fetch_key(s: Ledger, i: int, key: int) -> None:
    """Ask memory for where `key` is looked for first."""
    fetch_item(s.index_key, i, _home(key, s.index_slot.shape[1] - 1), 0)


@jit
def find(s: Ledger, i: int, key: int) -> int:
    """Block slot indexed under `key`, or -1."""
    mask = s.index_slot.shape[1] - 1
    at = _home(key, mask)
    while s.index_key[i, at] != 0:
        if s.index_key[i, at] == key:
            return s.index_slot[i, at]
        at = (at + 1) & mask
    return -1


@jit
def insert(s: Ledger, i: int, key: int, slot: int) -> None:
    """Index block `slot` under `key`; the key must not be present."""
    mask = s.index_slot.shape[1] - 1
    at = _home(key, mask)
    while s.index_key[i, at] != 0:
        at = (at + 1) & mask
    s.index_slot[i, at] = slot
    s.index_key[i, at] = key
    s.block_hash[i, slot] = key


@jit
def remove(s: Ledger, i: int, slot: int) -> None:
    """Take block `slot` out of the index; no effect if it is not indexed."""
    key = s.block_hash[i, slot]
    if key == 0:
        return
    mask = s.index_slot.shape[1] - 1
    at = _home(key, mask)
    while s.index_key[i, at] != key:
        at = (at + 1) & mask
    hole = at
    at = (at + 1) & mask
    while s.index_key[i, at] != 0:
        home = _home(s.index_key[i, at], mask)
        if ((at - home) & mask) >= ((at - hole) & mask):
            s.index_slot[i, hole] = s.index_slot[i, at]
            s.index_key[i, hole] = s.index_key[i, at]
            hole = at
        at = (at + 1) & mask
    s.index_slot[i, hole] = -1
    s.index_key[i, hole] = 0
    s.block_hash[i, slot] = 0
