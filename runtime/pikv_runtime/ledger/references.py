"""References of running requests to pages: open, share, fill, seal, evict, release."""

from __future__ import annotations

from pikv_runtime.ledger.blocks import drop_block, from_cache, index_block, link, unindex, whole
from pikv_runtime.ledger.host import drop_hosted
from pikv_runtime.ledger.index import find
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import (
    copies_of,
    copy_page,
    count_page,
    drop_copies,
    drop_copy,
    free,
    holds_copy,
    home_of,
    move,
    place,
    recode,
    tell_users,
    write_fact,
)
from pikv_runtime.ledger.prefetch import fetch_listed
from pikv_runtime.ledger.rules import rule_made, rule_released
from pikv_runtime.ledger.state import IN_HOST, ON_DEVICE, Ledger, Tally
from pikv_runtime.ledger.sums import add_page, take_off
from pikv_runtime.ledger.utility import always_on, window_start
from pikv_runtime.ledger.victims import cache_block, clear_room


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
    s.block_serial[i, block] = 0
    s.block_linked[i, block] = 0
    s.block_users[i, block] = 1
    s.block_full[i, block] = 0
    s.block_sealed[i, block] = 0
    s.block_exact[i, block] = 0
    s.block_cached[i, block] = 0
    s.block_host[i, block] = ON_DEVICE
    s.block_last_s[i, block] = s.clock_s[i]
    s.block_uses[i, block] = 1
    s.block_class[i, block] = s.req_class[i, q]
    s.block_length[i, block] = s.req_prompt[i, q]
    for layer in range(s.layers):
        place(s, i, block, layer, rank)
        s.block_refs[i, block, layer] = 1
        for k in range(s.block_error.shape[3]):
            s.block_error[i, block, layer, k] = 0.0
        for j in range(s.copies - 1):
            s.block_also[i, block, layer, j] = -1
    rule_made(s, i, block, q)
    _list_page(s, i, r, p, block)


@jit
def _list_page(s: Ledger, i: int, r: int, p: int, block: int) -> None:
    """Append `block` to slot `r` as page `p`; the page that leaves the window is read like the others from now on."""
    leaving = window_start(s, i, r)
    if leaving >= s.sink_pages:
        for layer in range(s.layers):
            count_page(s, i, r, leaving, layer, 0, -1)
            count_page(s, i, r, leaving, layer, 1, 1)
    s.page_block[i, r, p] = block
    s.slot_pages[i, r] = p + 1
    for layer in range(s.layers):
        write_fact(s, i, r, p, block, layer)
        s.page_live[i, r, layer, p] = 1
        s.page_ghost[i, r, layer, p] = 0
        s.page_mass[i, r, layer, p] = 1.0  # relative to a uniform spread: a new page starts as average
        s.page_mass_sum[i, r, layer, p] = 0.0
        s.page_reads[i, r, layer, p] = 0.0
        s.page_last_s[i, r, layer, p] = s.clock_s[i]
        s.page_gone_s[i, r, layer, p] = -1e9
        add_page(s, i, r, p, layer, 1)
        count_page(s, i, r, p, layer, 0, 1)
    if s.block_exact[i, block] == 1 and whole(s, i, block):
        s.whole_listed[i] += 1


@jit
def share(s: Ledger, i: int, r: int, block: int) -> None:
    """List an indexed block in slot `r` as its next page."""
    if s.block_cached[i, block] == 1:
        from_cache(s, i, block)
    s.block_users[i, block] += 1
    if s.block_exact[i, block] == 0:
        s.slot_lossy[i, r] = 1  # shared on purpose; what is computed over it is no more exact than it is
    for layer in range(s.layers):
        s.block_refs[i, block, layer] += 1
    if s.block_users[i, block] > 1:
        tell_users(s, i, block)
    _list_page(s, i, r, s.slot_pages[i, r], block)


@jit
def fill(s: Ledger, i: int, r: int, p: int) -> None:
    """Page `p` of slot `r` is full: bind its lineage and, if it may be shared, index it."""
    block = s.page_block[i, r, p]
    s.block_full[i, block] = 1
    q = s.slot_request[i, r]
    s.block_exact[i, block] = 1 - s.slot_lossy[i, r]
    if s.req_lossy[i, q] == 1 and (p + 1) * s.page_tokens > s.req_prompt[i, q]:
        s.block_exact[i, block] = 0  # computed anew and exactly, but from tokens that a lossy read chose
    if s.block_exact[i, block] == 1 and whole(s, i, block):
        s.whole_listed[i] += s.block_users[i, block]
    key = s.req_hashes[i, q, p]
    sharable = s.block_exact[i, block] == 1 or s.share_lossy == 1
    if not sharable or key == 0 or not whole(s, i, block):
        return
    twin = find(s, i, key)
    if twin >= 0 and s.block_host[i, twin] == IN_HOST:
        drop_hosted(s, i, twin)  # it could not be reached, and is here anew
        twin = -1
    if twin < 0:
        index_block(s, i, block, key)
    else:
        link(s, i, twin)  # its parent may have been away and is back now


@jit
def seal(s: Ledger, i: int, block: int) -> None:
    """Seal a full block: each page to the top rung, then to its home rank if cached blocks there make room."""
    if s.block_sealed[i, block] == 1:
        return
    s.block_sealed[i, block] = 1
    for layer in range(s.layers):
        if s.block_codec[i, block, layer] < 0:
            continue
        if s.block_codec[i, block, layer] < s.top_codec:
            recode(s, i, block, layer, s.top_codec)
        if send_home(s, i, block, layer) < 0:
            s.tally[i, Tally.SPILLS] += 1
    tell_users(s, i, block)


@jit
def send_home(s: Ledger, i: int, block: int, layer: int) -> int:
    """Move page (block, layer) to its home rank if cached blocks there make room; the caller tells its users. Returns 1
    if it moved, 0 if it is at home, -1 if there is no room."""
    home = home_of(s, i, block, layer)
    if home == s.block_rank[i, block, layer]:
        return 0
    if holds_copy(s, i, block, layer, home):
        drop_copy(s, i, block, layer, home)
    if not clear_room(s, i, home, s.codec_bytes[s.block_codec[i, block, layer]]):
        return -1
    move(s, i, block, layer, home)
    return 1


@jit
def copy_out(s: Ledger, i: int, block: int) -> None:
    """Keep further copies of a block's sealed pages on the homes of the other experts that their tokens chose, and on
    their shards' twins."""
    made = 0
    for layer in range(s.layers if s.block_copies.shape[1] > 0 else 0):
        tag, group = s.block_tag[i, block, layer], s.layer_group[layer]
        if s.block_codec[i, block, layer] < 0 or tag < 0:
            continue
        twin = s.shard_twin[i, tag * s.layer_groups + group]
        if twin >= 0:
            made += _copied(s, i, block, layer, twin)
        for j in range(s.copies - 1):
            expert = s.block_also[i, block, layer, j]
            if expert >= 0:
                home = s.shard_home[i, s.block_depth[i, block] % s.ranks, expert, group]
                made += _copied(s, i, block, layer, home) if home >= 0 else 0
    if made > 0:
        tell_users(s, i, block)


@jit
def _copied(s: Ledger, i: int, block: int, layer: int, rank: int) -> int:
    """Copies made: 1, or 0 where the page is on `rank` or does not fit there."""
    before = copies_of(s, i, block, layer)
    if not copy_page(s, i, block, layer, rank):
        s.tally[i, Tally.SPILLS] += 1
    return copies_of(s, i, block, layer) - before


@jit
def drop_reference(s: Ledger, i: int, r: int, p: int, layer: int) -> None:
    """Slot `r` gives up page `p` in `layer`; the bytes free with the last reference."""
    block, kind = s.page_block[i, r, p], 0 if always_on(s, i, r, p) else 1
    count_page(s, i, r, p, layer, kind, -1)
    add_page(s, i, r, p, layer, -1)
    s.page_live[i, r, layer, p] = 0
    s.block_refs[i, block, layer] -= 1
    if s.block_users[i, block] > 1:
        tell_users(s, i, block)
    if s.block_refs[i, block, layer] == 0:
        _free_page(s, i, block, layer)


@jit
def _free_page(s: Ledger, i: int, block: int, layer: int) -> None:
    """Nobody holds page (block, layer) any more: it is freed, and the block is whole no longer."""
    if s.block_exact[i, block] == 1 and whole(s, i, block):
        s.whole_listed[i] -= s.block_users[i, block]
    free(s, i, block, layer)
    unindex(s, i, block)


@jit
def evict_page(s: Ledger, i: int, r: int, p: int, layer: int) -> None:
    """Evict a live page: the reference goes; the centroid stays as a ghost while its bytes fit under the cap."""
    drop_reference(s, i, r, p, layer)
    owner = s.slot_owner[i, r]
    if s.bytes_rank[i, owner] + s.ghost_bytes <= s.cap_bytes[i]:
        s.page_ghost[i, r, layer, p] = 1
        add_page(s, i, r, p, layer, 1)
        s.bytes_rank[i, owner] += s.ghost_bytes
    s.page_gone_s[i, r, layer, p] = s.clock_s[i]
    s.slot_lossy[i, r] = 1
    s.tally[i, Tally.EVICTED_PAGES] += 1


@jit
def _give_up(s: Ledger, i: int, r: int, p: int, block: int) -> None:
    """Take slot `r`'s references and ghosts of page `p` off the books."""
    owner = s.slot_owner[i, r]
    if s.block_exact[i, block] == 1 and whole(s, i, block):
        s.whole_listed[i] -= 1
    for layer in range(s.layers):
        if s.page_live[i, r, layer, p] == 1:
            s.page_live[i, r, layer, p] = 0
            s.block_refs[i, block, layer] -= 1
        if s.page_ghost[i, r, layer, p] == 1:
            s.page_ghost[i, r, layer, p] = 0
            s.bytes_rank[i, owner] -= s.ghost_bytes
    s.block_users[i, block] -= 1
    s.page_block[i, r, p] = -1


@jit
def release(s: Ledger, i: int, r: int) -> None:
    """Slot `r` lets go of everything; blocks that are whole, sharable and indexed become cached."""
    fetch_listed(s, i, r)
    take_off(s, i, r)
    # Deepest first, so that a chain's tail is the older victim among equals.
    for p in range(s.slot_pages[i, r] - 1, -1, -1):
        block = s.page_block[i, r, p]
        _give_up(s, i, r, p, block)
        if s.block_users[i, block] > 0:
            for layer in range(s.layers):
                if s.block_codec[i, block, layer] >= 0 and s.block_refs[i, block, layer] == 0:
                    _free_page(s, i, block, layer)
            tell_users(s, i, block)
        elif s.block_hash[i, block] != 0 and whole(s, i, block):
            seal(s, i, block)
            for layer in range(s.layers):
                drop_copies(s, i, block, layer)  # what nobody reads is kept once
            rule_released(s, i, block, s.slot_tokens[i, r])
            cache_block(s, i, block)
        else:
            drop_block(s, i, block)
    s.slot_pages[i, r] = 0
    s.slot_request[i, r] = -1
