"""Blocks: prefix lookup, indexing, caching, dropping. A block is the unit of prefix reuse."""

from __future__ import annotations

from pikv_runtime.ledger.index import fetch_key, find, insert, remove
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import free
from pikv_runtime.ledger.queues import queued, unlink
from pikv_runtime.ledger.state import Ledger

AHEAD = 16  # keys that are asked of memory before they are looked up


@jit
def whole(s: Ledger, i: int, block: int) -> bool:
    """Whether the block is full and resident in every layer."""
    if s.block_full[i, block] == 0:
        return False
    for layer in range(s.layers):
        if s.block_codec[i, block, layer] < 0:
            return False
    return True


@jit
def lookup(s: Ledger, i: int, q: int) -> int:
    """How many leading blocks of request `q`'s prompt the index holds; at least one token stays to compute."""
    most = (s.req_prompt[i, q] - 1) // s.page_tokens
    count = 0
    for p in range(min(most, AHEAD)):
        fetch_key(s, i, s.req_hashes[i, q, p])
    while count < most:
        if count + AHEAD < most:
            fetch_key(s, i, s.req_hashes[i, q, count + AHEAD])
        key = s.req_hashes[i, q, count]
        if key == 0 or find(s, i, key) < 0:
            break
        count += 1
    return count


@jit
def link(s: Ledger, i: int, block: int) -> None:
    """Count indexed `block` among its parent's children, once for each time that the parent is indexed. The parent is
    found by hash: its old slot may have been given to another block meanwhile."""
    key = s.block_parent[i, block]
    parent = find(s, i, key) if key != 0 else -1
    if parent >= 0 and s.block_linked[i, block] != s.block_serial[i, parent]:
        s.block_linked[i, block] = s.block_serial[i, parent]
        s.block_up[i, block] = parent
        s.block_children[i, parent] += 1


@jit
def index_block(s: Ledger, i: int, block: int, key: int) -> None:
    """Let later prompts find `block` under `key`."""
    insert(s, i, key, block)
    s.last_serial[i] += 1
    s.block_serial[i, block] = s.last_serial[i]
    s.block_linked[i, block] = 0
    s.block_children[i, block] = 0
    link(s, i, block)


@jit
def unindex(s: Ledger, i: int, block: int) -> None:
    """Nobody may find `block` any more."""
    if s.block_hash[i, block] == 0:
        return
    remove(s, i, block)
    s.block_serial[i, block] = 0
    linked, parent = s.block_linked[i, block], s.block_up[i, block]
    if linked != 0 and s.block_serial[i, parent] == linked:  # else the parent went, or its slot is another's
        s.block_children[i, parent] -= 1


@jit
def to_cache(s: Ledger, i: int, block: int) -> None:
    """Keep a whole block without users for a later prompt."""
    s.block_cached[i, block] = 1
    s.cached_count[i] += 1
    for layer in range(s.layers):
        s.cached_bytes[i, s.block_rank[i, block, layer]] += s.codec_bytes[s.block_codec[i, block, layer]]


@jit
def from_cache(s: Ledger, i: int, block: int) -> None:
    """Cached `block` is cached no more: it gets a user, or is dropped."""
    s.block_cached[i, block] = 0
    s.cached_count[i] -= 1
    for layer in range(s.layers):
        s.cached_bytes[i, s.block_rank[i, block, layer]] -= s.codec_bytes[s.block_codec[i, block, layer]]


@jit
def drop_block(s: Ledger, i: int, block: int) -> None:
    """Free all pages and the slot of a block without users."""
    unindex(s, i, block)
    if s.block_cached[i, block] == 1:
        from_cache(s, i, block)
    if queued(s, i):
        unlink(s, i, block)
    for layer in range(s.layers):
        if s.block_codec[i, block, layer] >= 0:
            free(s, i, block, layer)
    s.free_slots[i, s.free_count[i]] = block
    s.free_count[i] += 1
