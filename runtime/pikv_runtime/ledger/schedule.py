"""Scheduling: arrivals, admission, the iteration's plan, preemption. First come, first served."""

from __future__ import annotations

from pikv_runtime.ledger.blocks import from_cache, lookup
from pikv_runtime.ledger.host import bytes_on, from_host, hold, let_go
from pikv_runtime.ledger.index import find
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pressure import demotes, make_room
from pikv_runtime.ledger.references import open_block, release, share
from pikv_runtime.ledger.state import HELD, IN_HOST, NATIVE, Ledger, Status, Tally
from pikv_runtime.ledger.utility import decoding
from pikv_runtime.ledger.victims import cache_block, free_slot


@jit
def ttft_rate(s: Ledger, i: int, q: int) -> float:
    """Latency charge per second before request `q`'s first token."""
    c = s.req_class[i, q]
    return s.class_weight[i, c] / s.class_ttft_s[i, c]


@jit
def tpot_rate(s: Ledger, i: int, q: int) -> float:
    """Latency charge per second after request `q`'s first token."""
    c = s.req_class[i, q]
    return s.class_weight[i, c] / (s.class_tpot_s[i, c] * max(1, s.req_output[i, q] - 1))


@jit
def _fits_alone(s: Ledger, i: int, q: int) -> bool:
    """Whether the request could run on an otherwise empty rank: prompt native, then sealed plus a native rest."""
    block = s.codec_bytes[NATIVE] * s.layers
    total = s.req_prompt[i, q] + s.req_output[i, q]
    pages = (total + s.page_tokens - 1) // s.page_tokens
    return pages <= s.page_block.shape[2] and pages * block <= s.cap_bytes[i]


@jit
def arrive(s: Ledger, i: int) -> None:
    """Take in every request whose arrival has passed; refuse at once what could never fit."""
    while s.next_arrival[i] < s.num_requests[i]:
        q = s.next_arrival[i]
        if s.req_arrival_s[i, q] > s.clock_s[i]:
            return
        s.next_arrival[i] += 1
        work = s.req_prompt[i, q]
        s.moving[i, 0] += work
        if not _fits_alone(s, i, q):
            s.req_status[i, q] = Status.REFUSED
            s.unfinished[i] -= 1
            continue
        s.req_status[i, q] = Status.WAITING
        rate = ttft_rate(s, i, q)
        s.waiting_rate[i] += rate
        s.tally[i, Tally.LATENCY_CHARGE] += rate * (s.clock_s[i] - s.req_arrival_s[i, q])


@jit
def _head(s: Ledger, i: int) -> int:
    """First waiting request in order of arrival, or -1."""
    while s.queue_head[i] < s.next_arrival[i]:
        q = s.queue_head[i]
        if s.req_status[i, q] == Status.WAITING:
            return q
        s.queue_head[i] += 1
    return -1


@jit
def _free_slot(s: Ledger, i: int) -> int:
    for r in range(s.slot_request.shape[1]):
        if s.slot_request[i, r] < 0:
            return r
    return -1


@jit
def _pick_owner(s: Ledger, i: int) -> int:
    """The rank with the most free bytes; the lowest of equals."""
    best = 0
    for rank in range(1, s.ranks):
        if s.bytes_rank[i, rank] - s.cached_bytes[i, rank] < s.bytes_rank[i, best] - s.cached_bytes[i, best]:
            best = rank
    return best


@jit
def _room_beside(s: Ledger, i: int, q: int, hits: int, rank: int) -> int:
    """Bytes that evicting all cached blocks would leave free on `rank`, request `q`'s own hits there (cached ones are
    not there for evicting, those in the host come back)."""
    free = s.cap_bytes[i] - s.bytes_rank[i, rank] + s.cached_bytes[i, rank]
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
def _admit(s: Ledger, i: int, r: int, q: int) -> bool:
    """Start request `q` in slot `r` if its whole context fits native on one rank. Hit blocks are taken first."""
    owner = _pick_owner(s, i)
    target = s.req_prompt[i, q] + s.req_generated[i, q]
    hits = lookup(s, i, q)
    pages = (target + s.page_tokens - 1) // s.page_tokens
    block_bytes = s.layers * s.codec_bytes[NATIVE]
    fresh = (pages - hits) * block_bytes
    # Room for every running request to open its next page, or admission and preemption would chase each other.
    need = fresh + s.running_count[i] * block_bytes
    if not _could_fit(s, i, q, owner, hits, pages - hits, need):
        return False
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


@jit
def preempt(s: Ledger, i: int, r: int) -> None:
    """Send slot `r`'s request back to the queue; it will be recomputed."""
    q = s.slot_request[i, r]
    if s.slot_lossy[i, r] == 1:
        s.req_lossy[i, q] = 1
    retire(s, i, r)
    s.slot_plan[i, r] = 0
    s.req_status[i, q] = Status.WAITING
    s.req_preempted[i, q] += 1
    s.queue_head[i] = min(s.queue_head[i], q)
    s.tally[i, Tally.PREEMPTIONS] += 1


@jit
def _plan_decode(s: Ledger, i: int) -> int:
    """One token for every decoding slot, earliest first; who finds no room preempts the latest arrival."""
    total = 0
    k = 0
    while k < s.running_count[i]:  # preemption takes from the end
        r = s.running[i, k]
        k += 1
        if not decoding(s, i, r):
            continue
        full = s.slot_tokens[i, r] == s.slot_pages[i, r] * s.page_tokens
        if not full or _grow(s, i, r):
            s.slot_plan[i, r] = 1
            total += 1
    return total


@jit
def _grow(s: Ledger, i: int, r: int) -> bool:
    """Open a page for slot `r`, preempting later arrivals until there is room. False if it preempted itself."""
    need = s.layers * s.codec_bytes[NATIVE]
    owner = s.slot_owner[i, r]
    while True:
        if s.free_count[i] == 0:
            free_slot(s, i)
        if s.free_count[i] > 0 and make_room(s, i, owner, need):
            open_block(s, i, r, owner)
            return True
        latest = s.running[i, s.running_count[i] - 1]
        preempt(s, i, latest)
        if latest == r:
            return False


@jit
def _plan_prefill(s: Ledger, i: int, r: int, budget: int) -> int:
    """Plan a prompt chunk of at most `budget` tokens for slot `r`. Returns its tokens."""
    tokens = min(budget, s.slot_target[i, r] - s.slot_tokens[i, r])
    s.slot_plan[i, r] = tokens
    return tokens


@jit
def plan(s: Ledger, i: int) -> int:
    """Plan one iteration into `slot_plan` (tokens a slot computes). Returns the total; 0 means idle."""
    arrive(s, i)
    for r in range(s.slot_plan.shape[1]):
        s.slot_plan[i, r] = 0
    budget = s.max_batch_tokens - _plan_decode(s, i)
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        if budget > 0 and not decoding(s, i, r):
            budget -= _plan_prefill(s, i, r, budget)
    while budget > 0 and s.running_count[i] < s.slot_plan.shape[1]:
        q = _head(s, i)
        if q < 0:
            break
        r = _free_slot(s, i)
        if not _admit(s, i, r, q):
            break
        budget -= _plan_prefill(s, i, r, budget)
    return s.max_batch_tokens - budget
