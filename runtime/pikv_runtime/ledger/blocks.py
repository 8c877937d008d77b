"""Blocks: allocation, prefix lookup, sharing, caching. A block is the unit of prefix reuse."""

from __future__ import annotations

from pikv_runtime.ledger.index import find, insert, remove
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import free, place, seal
from pikv_runtime.ledger.state import Ledger, Tally


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
def open_block(s: Ledger, i: int, r: int, rank: int) -> None:
    """Append a fresh block of native pages on `rank` to slot `r`; the caller has made room and checked slots."""
    s.free_count[i] -= 1
    block = s.free_slots[i, s.free_count[i]]
    p = s.slot_pages[i, r]
    q = s.slot_request[i, r]
    s.block_hash[i, block] = 0
    s.block_parent[i, block] = s.req_hashes[i, q, p - 1] if p > 0 else 0
    s.block_depth[i, block] = p
    s.block_children[i, block] = 0
    s.block_users[i, block] = 1
    s.block_full[i, block] = 0
    s.block_sealed[i, block] = 0
    s.block_exact[i, block] = 0
    s.block_cached[i, block] = 0
    s.block_last_s[i, block] = s.clock_s[i]
    s.block_uses[i, block] = 1
    s.block_class[i, block] = s.req_class[i, q]
    s.block_length[i, block] = s.req_prompt[i, q]
    for layer in range(s.layers):
        place(s, i, block, layer, rank)
        s.block_refs[i, block, layer] = 1
        for k in range(s.block_error.shape[3]):
            s.block_error[i, block, layer, k] = 0.0
    _list_page(s, i, r, p, block)


@jit
def _list_page(s: Ledger, i: int, r: int, p: int, block: int) -> None:
    s.page_block[i, r, p] = block
    s.slot_pages[i, r] = p + 1
    s.slot_dirty[i, r] = 1
    for layer in range(s.layers):
        s.page_live[i, r, p, layer] = 1
        s.page_ghost[i, r, p, layer] = 0
        s.page_mass[i, r, p, layer] = 1.0  # relative to a uniform spread: a new page starts as average
        s.page_mass_sum[i, r, p, layer] = 0.0
        s.page_reads[i, r, p, layer] = 0.0
        s.page_last_s[i, r, p, layer] = s.clock_s[i]
        s.page_gone_s[i, r, p, layer] = -1e9


@jit
def lookup(s: Ledger, i: int, q: int) -> int:
    """How many leading blocks of request `q`'s prompt the index holds; at least one token stays to compute."""
    most = (s.req_prompt[i, q] - 1) // s.page_tokens
    count = 0
    while count < most:
        key = s.req_hashes[i, q, count]
        if key == 0 or find(s, i, key) < 0:
            break
        count += 1
    return count


@jit
def share(s: Ledger, i: int, r: int, block: int) -> None:
    """List an indexed block in slot `r` as its next page."""
    if s.block_cached[i, block] == 1:
        s.block_cached[i, block] = 0
        for layer in range(s.layers):
            size = s.codec_bytes[s.block_codec[i, block, layer]]
            s.cached_bytes[i, s.block_rank[i, block, layer]] -= size
    s.block_users[i, block] += 1
    for layer in range(s.layers):
        s.block_refs[i, block, layer] += 1
        if s.block_codec[i, block, layer] > s.top_codec:
            s.slot_lossy[i, r] = 1  # a demoted cached block: what is computed over it is not exact
    _list_page(s, i, r, s.slot_pages[i, r], block)


@jit
def _count_child(s: Ledger, i: int, block: int, delta: int) -> None:
    # By hash: the parent's slot may have been freed and given to another block meanwhile.
    key = s.block_parent[i, block]
    if key == 0:
        return
    parent = find(s, i, key)
    if parent >= 0:
        s.block_children[i, parent] = max(0, s.block_children[i, parent] + delta)


@jit
def fill(s: Ledger, i: int, r: int, p: int) -> None:
    """Page `p` of slot `r` is full: bind its lineage and, if it may be shared, index it."""
    block = s.page_block[i, r, p]
    q = s.slot_request[i, r]
    s.block_full[i, block] = 1
    s.block_exact[i, block] = 1 - s.slot_lossy[i, r]
    key = s.req_hashes[i, q, p]
    sharable = s.block_exact[i, block] == 1 or s.share_lossy == 1
    if sharable and key != 0 and whole(s, i, block) and find(s, i, key) < 0:
        insert(s, i, key, block)
        _count_child(s, i, block, 1)


@jit
def unindex(s: Ledger, i: int, block: int) -> None:
    """Nobody may find `block` any more."""
    if s.block_hash[i, block] == 0:
        return
    remove(s, i, block)
    _count_child(s, i, block, -1)


@jit
def drop_block(s: Ledger, i: int, block: int) -> None:
    """Free all pages and the slot of a block without users."""
    unindex(s, i, block)
    for layer in range(s.layers):
        if s.block_codec[i, block, layer] >= 0:
            free(s, i, block, layer)
    s.block_cached[i, block] = 0
    s.free_slots[i, s.free_count[i]] = block
    s.free_count[i] += 1


@jit
def drop_reference(s: Ledger, i: int, r: int, p: int, layer: int) -> None:
    """Slot `r` gives up page `p` in `layer`; the bytes free with the last reference."""
    block = s.page_block[i, r, p]
    s.page_live[i, r, p, layer] = 0
    s.block_refs[i, block, layer] -= 1
    if s.block_refs[i, block, layer] == 0:
        free(s, i, block, layer)
        unindex(s, i, block)
    s.slot_dirty[i, r] = 1


@jit
def evict_page(s: Ledger, i: int, r: int, p: int, layer: int) -> None:
    """Evict a live page: the reference goes; the centroid stays as a ghost while its bytes fit under the cap."""
    drop_reference(s, i, r, p, layer)
    owner = s.slot_owner[i, r]
    if s.bytes_rank[i, owner] + s.ghost_bytes <= s.cap_bytes[i]:
        s.page_ghost[i, r, p, layer] = 1
        s.bytes_rank[i, owner] += s.ghost_bytes
    s.page_gone_s[i, r, p, layer] = s.clock_s[i]
    s.slot_lossy[i, r] = 1
    s.tally[i, Tally.EVICTED_PAGES] += 1


@jit
def release(s: Ledger, i: int, r: int) -> None:
    """Slot `r` lets go of everything; blocks that are whole, sharable and indexed become cached."""
    # Deepest first, so that a chain's tail is the older victim among equals.
    for p in range(s.slot_pages[i, r] - 1, -1, -1):
        block = s.page_block[i, r, p]
        for layer in range(s.layers):
            if s.page_live[i, r, p, layer] == 1:
                s.page_live[i, r, p, layer] = 0
                s.block_refs[i, block, layer] -= 1
            if s.page_ghost[i, r, p, layer] == 1:
                s.page_ghost[i, r, p, layer] = 0
                s.bytes_rank[i, s.slot_owner[i, r]] -= s.ghost_bytes
        s.block_users[i, block] -= 1
        s.page_block[i, r, p] = -1
        if s.block_users[i, block] == 0:
            if s.block_hash[i, block] != 0 and whole(s, i, block):
                _to_cache(s, i, block)
            else:
                drop_block(s, i, block)
        else:
            for layer in range(s.layers):
                if s.block_codec[i, block, layer] >= 0 and s.block_refs[i, block, layer] == 0:
                    free(s, i, block, layer)
                    unindex(s, i, block)
    s.slot_pages[i, r] = 0
    s.slot_request[i, r] = -1


@jit
def _to_cache(s: Ledger, i: int, block: int) -> None:
    seal(s, i, block)
    s.block_cached[i, block] = 1
    for layer in range(s.layers):
        size = s.codec_bytes[s.block_codec[i, block, layer]]
        s.cached_bytes[i, s.block_rank[i, block, layer]] += size
