"""Admission: whether a waiting request fits, and the slot, blocks and bytes that it takes when it does."""

from __future__ import annotations

from pikv_runtime.ledger.blocks import from_cache, lookup
from pikv_runtime.ledger.host import bytes_on, from_host, hold, let_go
from pikv_runtime.ledger.index import find
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.prefetch import fetch_block, fetch_free, fetch_victims
from pikv_runtime.ledger.pressure import demotes, make_room
from pikv_runtime.ledger.references import open_block, release, share
from pikv_runtime.ledger.rules import rule_hit
from pikv_runtime.ledger.state import HELD, IN_HOST, NATIVE, Ledger, Status, Tally
from pikv_runtime.ledger.victims import cache_block, free_slot


@jit
def open_slot(s: Ledger, i: int) -> int:
    """A slot that nobody runs in, or -1."""
    for r in range(s.slot_request.shape[1]):
        if s.slot_request[i, r] < 0:
            return r
    return -1


@jit
def _kept(s: Ledger, i: int, rank: int) -> int:
    """Bytes on `rank` that making room for somebody else does not free."""
    return s.bytes_rank[i, rank] - s.cached_bytes[i, rank] - s.copy_bytes[i, rank]


@jit
def _pick_owner(s: Ledger, i: int) -> int:
    """The rank with the most free bytes; the lowest of equals."""
    best = 0
    for rank in range(1, s.ranks):
        if _kept(s, i, rank) < _kept(s, i, best):
            best = rank
    return best


@jit
def _room_beside(s: Ledger, i: int, q: int, hits: int, rank: int) -> int:
    """Bytes that giving up all cached blocks and copies would leave free on `rank`, request `q`'s own hits there
    (cached ones are not there for evicting, those in the host come back)."""
    free = s.cap_bytes[i] - _kept(s, i, rank)
    for p in range(hits):
        block = find(s, i, s.req_hashes[i, q, p])
        if s.block_cached[i, block] == 1 or s.block_host[i, block] == IN_HOST:
            free -= bytes_on(s, i, block, rank)
    return free


@jit
def _could_fit(s: Ledger, i: int, q: int, owner: int, hits: int, fresh: int, need: int) -> bool:
    """Whether evicting cached blocks (or perhaps demoting live pages) would admit request `q`: nothing is
    sacrificed in vain."""
    slots, hosted = s.free_count[i] + s.cached_count[i] + s.host_count[i], 0
    for p in range(hits):
        block = find(s, i, s.req_hashes[i, q, p])
        hosted += s.block_host[i, block]
        slots -= 1 if s.block_cached[i, block] == 1 or s.block_host[i, block] == IN_HOST else 0
    if fresh > slots:
        return False
    fits = need <= _room_beside(s, i, q, hits, owner)
    for rank in range(s.ranks if hosted > 0 else 0):
        fits = fits and (rank == owner or _room_beside(s, i, q, hits, rank) >= 0)
    return fits or demotes(s, i)


@jit
def _hold_hits(s: Ledger, i: int, q: int, hits: int) -> int:
    """If any of request `q`'s hits lies in the host, keep all of them from being given up while room is made for it.
    Returns how many do."""
    hosted = 0
    for p in range(hits if s.host_cap[i] > 0 else 0):
        hosted += s.block_host[i, find(s, i, s.req_hashes[i, q, p])]
    for p in range(hits if hosted > 0 else 0):
        block = find(s, i, s.req_hashes[i, q, p])
        if s.block_host[i, block] == IN_HOST:
            hold(s, i, block)
        elif s.block_cached[i, block] == 1:
            from_cache(s, i, block)
    return hosted


@jit
def _bring_back(s: Ledger, i: int, block: int) -> bool:
    """Make room for a held block and bring it back. False if there is none to make."""
    for rank in range(s.ranks):
        need = bytes_on(s, i, block, rank)
        if need > 0 and not make_room(s, i, rank, need):
            return False
    from_host(s, i, block)
    return True


@jit
def _take_hits(s: Ledger, i: int, r: int, q: int, hits: int) -> bool:
    """List the hits in slot `r`; those in the host come back first. False if one cannot, and the others stay where
    they were."""
    for p in range(hits):
        block = find(s, i, s.req_hashes[i, q, p])
        if s.block_host[i, block] != HELD or _bring_back(s, i, block):
            share(s, i, r, block)
            continue
        for rest in range(p, hits):
            block = find(s, i, s.req_hashes[i, q, rest])
            if s.block_host[i, block] == HELD:
                let_go(s, i, block)
            elif s.block_users[i, block] == 0:
                cache_block(s, i, block)
        return False
    return True


@jit
def _record_hits(s: Ledger, i: int, r: int, q: int, hits: int, hosted: int) -> None:
    for p in range(hits - 1 if s.req_preempted[i, q] == 0 else -1, -1, -1):  # deepest first: the head is the youngest
        rule_hit(s, i, s.page_block[i, r, p], q)
    tokens, from_host_tokens = hits * s.page_tokens, hosted * s.page_tokens
    target = s.slot_target[i, r]
    for p in range(hits):
        block = s.page_block[i, r, p]
        if s.req_preempted[i, q] == 0:
            gap = (s.clock_s[i] - s.block_last_s[i, block]) / s.interval_s[i]
            s.moving[i, 4] += 0.02 * (gap - s.moving[i, 4])
        s.block_last_s[i, block] = s.clock_s[i]
        s.block_uses[i, block] += 1
    if s.req_preempted[i, q] > 0:
        return  # finding one's own blocks again says nothing about reuse
    s.req_hit_tokens[i, q] = tokens
    s.tally[i, Tally.PROMPT_TOKENS] += target
    s.tally[i, Tally.HIT_TOKENS] += tokens
    s.moving[i, 3] += 0.05 * (tokens / target - s.moving[i, 3])
    s.tally[i, Tally.HOST_HIT_TOKENS] += from_host_tokens
    s.moving[i, 5] += 0.05 * (from_host_tokens / target - s.moving[i, 5])


@jit
def _enlist(s: Ledger, i: int, r: int, q: int) -> None:
    """Give slot `r` to request `q`; `running` stays in order of arrival."""
    s.slot_request[i, r] = q
    k = s.running_count[i]
    while k > 0 and s.slot_request[i, s.running[i, k - 1]] > q:
        s.running[i, k] = s.running[i, k - 1]
        k -= 1
    s.running[i, k] = r
    s.running_count[i] += 1


@jit
def retire(s: Ledger, i: int, r: int) -> None:
    """Slot `r` lets go of its pages and is free."""
    release(s, i, r)
    k = 0
    while s.running[i, k] != r:
        k += 1
    s.running_count[i] -= 1
    for after in range(k, s.running_count[i]):
        s.running[i, after] = s.running[i, after + 1]


@jit
def admit(s: Ledger, i: int, r: int, q: int) -> bool:
    """Start request `q` in slot `r` if its whole context fits native on one rank. Hit blocks are taken first."""
    owner = _pick_owner(s, i)
    target = s.req_prompt[i, q] + s.req_generated[i, q]
    hits = lookup(s, i, q)
    pages = (target + s.page_tokens - 1) // s.page_tokens
    block_bytes = s.layers * s.codec_bytes[NATIVE]
    fresh = (pages - hits) * block_bytes
    for p in range(hits):
        fetch_block(s, i, find(s, i, s.req_hashes[i, q, p]))
    # Room for every running request to open its next page, or admission and preemption would chase each other.
    need = fresh + s.running_count[i] * block_bytes
    if not _could_fit(s, i, q, owner, hits, pages - hits, need):
        return False
    fetch_free(s, i, pages - hits)
    fetch_victims(s, i, 2 * (pages - hits))
    _enlist(s, i, r, q)
    s.slot_tokens[i, r] = hits * s.page_tokens
    s.slot_target[i, r] = target
    s.slot_owner[i, r] = owner
    s.slot_lossy[i, r] = 0
    s.slot_pages[i, r] = 0
    s.slot_sealed[i, r] = s.sink_pages
    s.slot_dirty[i, r] = 1
    # Hits are taken before room is made for the rest, so that making room cannot take them.
    hosted = _hold_hits(s, i, q, hits)
    taken = _take_hits(s, i, r, q, hits)
    while taken and s.free_count[i] < pages - hits and free_slot(s, i):
        pass
    if not taken or s.free_count[i] < pages - hits or not make_room(s, i, owner, need):
        retire(s, i, r)
        s.unsettled[i] = 1  # blocks were given up for it: trying again may end otherwise
        return False
    for _ in range(pages - hits):
        open_block(s, i, r, owner)
    s.req_status[i, q] = Status.RUNNING
    _record_hits(s, i, r, q, hits, hosted)
    return True
