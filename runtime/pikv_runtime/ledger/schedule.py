"""Scheduling: arrivals, the iteration's plan, preemption. First come, first served."""

from __future__ import annotations

from pikv_runtime.ledger.admission import admit, open_slot, retire
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pressure import make_room
from pikv_runtime.ledger.references import open_block
from pikv_runtime.ledger.state import NATIVE, Ledger, Status, Tally
from pikv_runtime.ledger.utility import decoding
from pikv_runtime.ledger.victims import free_slot


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
        if s.req_status[i, q] != Status.FUTURE:  # cancelled before it came
            continue
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
        r = open_slot(s, i)
        if not admit(s, i, r, q):
            break
        budget -= _plan_prefill(s, i, r, budget)
    return s.max_batch_tokens - budget
