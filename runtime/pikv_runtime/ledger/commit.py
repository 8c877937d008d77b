"""After the forward pass: time passes, tokens are counted, pages fill and seal, requests finish."""

from __future__ import annotations

from pikv_runtime.contract import GlobalControl
from pikv_runtime.ledger.admission import retire
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.pages import tell_users
from pikv_runtime.ledger.references import copy_out, fill, seal
from pikv_runtime.ledger.schedule import tpot_rate, ttft_rate
from pikv_runtime.ledger.state import F4, I1, Ledger, Status, Tally
from pikv_runtime.ledger.utility import window_start


@jit
def advance(s: Ledger, i: int, dt_s: float) -> None:
    """Let `dt_s` seconds pass: latency is charged to everybody in the system, bytes to memory."""
    total, hosted = 0, 0
    for rank in range(s.ranks):
        total += s.bytes_rank[i, rank]
        hosted += s.host_bytes[i, rank]
    s.tally[i, Tally.BYTE_SECONDS] += total * dt_s
    s.tally[i, Tally.HOST_BYTE_SECONDS] += hosted * dt_s
    s.tally[i, Tally.PEAK_BYTES] = max(s.tally[i, Tally.PEAK_BYTES], total)
    s.tally[i, Tally.LATENCY_CHARGE] += (s.waiting_rate[i] + s.decode_rate[i]) * dt_s
    s.clock_s[i] += dt_s


@jit
def tag_page(s: Ledger, i: int, block: int, tags: I1, errors: F4) -> None:
    """Bind the late tags (L,) and codec errors (L, K) of a page range that the forward pass filled."""
    for layer in range(s.layers):
        tag = tags[layer]
        s.block_tag[i, block, layer] = tag
        for k in range(s.block_error.shape[3]):
            s.block_error[i, block, layer, k] = errors[layer, k]
        if tag >= 0:
            for e in range(s.experts):
                hit = 1.0 if e == tag else 0.0
                s.group_routed[i, e] += 0.01 * (hit - s.group_routed[i, e])
    tell_users(s, i, block)


@jit
def also_chosen(s: Ledger, i: int, block: int, experts: I1) -> None:
    """Bind the further experts (L, copies - 1), -1 none, that the tokens of a page range chose, beside its tags."""
    for layer in range(s.layers):
        for j in range(s.copies - 1):
            s.block_also[i, block, layer, j] = experts[layer, j]


@jit
def filled_pages(s: Ledger, i: int, r: int) -> tuple[int, int]:
    """Pages [first, last) of slot `r` that the planned tokens fill."""
    first = s.slot_tokens[i, r] // s.page_tokens
    last = (s.slot_tokens[i, r] + s.slot_plan[i, r]) // s.page_tokens
    return first, last


@jit
def seal_outside(s: Ledger, i: int, r: int) -> None:
    """Seal every page of a decoding slot that has left the always-on set (what lies before the window is full)."""
    recent = window_start(s, i, r)
    while s.slot_sealed[i, r] < recent:
        block = s.page_block[i, r, s.slot_sealed[i, r]]
        seal(s, i, block)
        copy_out(s, i, block)
        s.slot_sealed[i, r] += 1


@jit
def _first_token(s: Ledger, i: int, q: int) -> None:
    if s.req_first_s[i, q] >= 0.0:
        return
    s.req_first_s[i, q] = s.clock_s[i]
    s.waiting_rate[i] -= ttft_rate(s, i, q)
    s.decode_rate[i] += tpot_rate(s, i, q)


@jit
def _finish(s: Ledger, i: int, r: int) -> None:
    q = s.slot_request[i, r]
    s.req_status[i, q] = Status.DONE
    s.req_finish_s[i, q] = s.clock_s[i]
    s.decode_rate[i] -= tpot_rate(s, i, q)
    s.unfinished[i] -= 1
    if s.req_audited[i, q] == 1:  # told when it is over: else a policy could tell who is audited, and blur the others
        s.loss_class[i, s.req_class[i, q], 0] += s.req_loss[i, q]
        s.loss_class[i, s.req_class[i, q], 1] += s.req_observed[i, q] * s.layers
    retire(s, i, r)


@jit
def _commit_slot(s: Ledger, i: int, r: int) -> None:
    q = s.slot_request[i, r]
    was_prefill = s.slot_tokens[i, r] < s.slot_target[i, r]
    if not was_prefill and s.sparse == 1 and s.control_globals[i, GlobalControl.FAN_OUT] < 1.0:
        s.slot_lossy[i, r] = 1  # what a sparse read computes is not exact
    first, last = filled_pages(s, i, r)
    s.slot_tokens[i, r] += s.slot_plan[i, r]
    for p in range(first, last):
        fill(s, i, r, p)
    if s.slot_tokens[i, r] < s.slot_target[i, r]:
        return
    s.req_generated[i, q] += 1
    _first_token(s, i, q)
    if s.req_generated[i, q] >= s.req_output[i, q]:
        _finish(s, i, r)
    elif was_prefill or last > first:
        seal_outside(s, i, r)


@jit
def commit(s: Ledger, i: int, dt_s: float) -> None:
    """Commit the planned iteration, which took `dt_s` seconds."""
    advance(s, i, dt_s)
    s.tally[i, Tally.ITERATIONS] += 1
    s.tally[i, Tally.BUSY_S] += dt_s
    k = 0
    while k < s.running_count[i]:
        r = s.running[i, k]
        if s.slot_plan[i, r] > 0:
            _commit_slot(s, i, r)
        s.slot_plan[i, r] = 0
        if s.slot_request[i, r] >= 0:  # else it finished, and the next one has moved up
            k += 1
