"""Requests whose client is gone: their pages are free at once, and what they had shared stays for others."""

from __future__ import annotations

from pikv_runtime.ledger.admission import retire
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.schedule import tpot_rate, ttft_rate
from pikv_runtime.ledger.state import Ledger, Status


@jit
def cancel(s: Ledger, i: int, q: int) -> bool:
    """Cancel request `q` between two iterations, wherever it is. False if it is over already.

    It has been charged for the time it was in the system and is charged no more, neither now nor by `close`.
    """
    status = s.req_status[i, q]
    if status != Status.FUTURE and status != Status.WAITING and status != Status.RUNNING:
        return False
    if status == Status.RUNNING:
        r = 0
        while s.slot_request[i, r] != q:
            r += 1
        retire(s, i, r)
        s.slot_plan[i, r] = 0
    if s.req_first_s[i, q] >= 0.0:  # preempted requests wait with tokens out
        s.decode_rate[i] -= tpot_rate(s, i, q)
    elif status != Status.FUTURE:
        s.waiting_rate[i] -= ttft_rate(s, i, q)
    s.req_status[i, q] = Status.CANCELLED
    s.req_finish_s[i, q] = s.clock_s[i]
    s.unfinished[i] -= 1
    if s.req_audited[i, q] == 1:  # told when it is over, as for a request that was served
        s.loss_class[i, s.req_class[i, q], 0] += s.req_loss[i, q]
        s.loss_class[i, s.req_class[i, q], 1] += s.req_observed[i, q] * s.layers
    return True
