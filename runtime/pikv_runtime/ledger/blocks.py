"""Blocks: prefix lookup, indexing, caching, dropping. A block is the unit of prefix reuse."""

from __future__ import annotations

from pikv_runtime.ledger.index import fetch_key, find, insert, remove
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import free
from pikv_runtime.ledger.prefetch import SLOT, fetch_block
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
def fetch_prompt(s: Ledger, i: int, q: int) -> None:
    """Ask memory for what looking up the prompt of request `q` begins with."""
    for p in range(min((s.req_prompt[i, q] - 1) // s.page_tokens, AHEAD)):
        fetch_key(s, i, s.req_hashes[i, q, p])


@jit
def fetch_links(s: Ledger, i: int, count: int) -> None:
    """Ask memory for the keys and the parents of the blocks near the top of the heap of victims, whose rows have come
    meanwhile (`fetch_victims`)."""
    for k in range(min(count, s.victim_count[i])):
        block = s.victims[i, k] & SLOT
        fetch_key(s, i, s.block_hash[i, block])
        fetch_block(s, i, s.block_up[i, block])


@jit
def fetch_filling(s: Ledger, i: int, r: int, first: int, last: int) -> None:
    """Ask memory for what indexing pages [first, last) of slot `r` touches: keys and rows, also of its parent."""
    q = s.slot_request[i, r]
    for p in range(max(0, first - 1), last):
        fetch_key(s, i, s.req_hashes[i, q, p])
        fetch_block(s, i, s.page_block[i, r, p])


@jit
def lookup(s: Ledger, i: int, q: int) -> int:
    """How many leading blocks of request `q`'s prompt the index holds; at least one token stays to compute."""
    most = (s.req_prompt[i, q] - 1) // s.page_tokens
    count = 0
    fetch_prompt(s, i, q)
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
