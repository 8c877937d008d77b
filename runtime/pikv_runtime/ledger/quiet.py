"""Quiet iterations: every request decodes one more token, and nothing else happens.

No page opens or fills, nobody arrives, finishes or is observed, and who could not be admitted still cannot: all state
but the counts of tokens is the same, so one price holds for all of them and no plan has to be made. Most iterations of
a server that is not full are quiet. The sums are the ones that single iterations make, addition by addition, so a lane
that skips ahead and one that does not agree to the last bit.
"""

from __future__ import annotations

from pikv_runtime.contract import GlobalControl
from pikv_runtime.ledger.commit import advance
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.observe import steps_to_observation
from pikv_runtime.ledger.pricing import charge, iteration_parts, seconds_of
from pikv_runtime.ledger.state import Ledger, Tally
from pikv_runtime.ledger.utility import decoding


@jit
def quiet_tokens(s: Ledger, i: int, r: int) -> int:
    """Tokens that slot `r` can still decode before anything happens to it."""
    if not decoding(s, i, r):
        return 0
    q = s.slot_request[i, r]
    left = s.slot_pages[i, r] * s.page_tokens - s.slot_tokens[i, r] - 1  # the token that fills a page is an event
    left = min(left, s.req_output[i, q] - s.req_generated[i, q] - 1)
    return min(left, steps_to_observation(s, i, q))


@jit
def quiet_iterations(s: Ledger, i: int) -> int:
    """Iterations that will be quiet if nobody comes."""
    if s.running_count[i] == 0 or s.pending_s[i] != 0.0:
        return 0
    count = 2 * s.observe_tokens
    for k in range(s.running_count[i]):
        count = min(count, quiet_tokens(s, i, s.running[i, k]))
        if count <= 0:
            return 0
    return count


@jit
def _skip(s: Ledger, i: int, most: int, limit_s: float) -> int:
    """Let up to `most` iterations of the plan pass, each beginning before `limit_s` and with nobody new arrived."""
    parts = iteration_parts(s, i)
    dt_s, count = seconds_of(parts), 0
    while count < most and s.clock_s[i] < limit_s:
        q = s.next_arrival[i]
        if q < s.num_requests[i] and s.req_arrival_s[i, q] <= s.clock_s[i]:
            break  # the first time, the plan has taken in whoever had arrived
        charge(s, i, parts)
        advance(s, i, dt_s)
        s.tally[i, Tally.ITERATIONS] += 1
        s.tally[i, Tally.BUSY_S] += dt_s
        count += 1
    return count


@jit
def is_quiet(s: Ledger, i: int, running: int) -> bool:
    """Whether the plan just made admitted nobody (`running` requests ran before), and failed to without a trace."""
    return s.running_count[i] == running and s.unsettled[i] == 0


@jit
def run_quiet(s: Ledger, i: int, most: int, limit_s: float) -> None:
    """Run the planned iteration, and then others like it: at most `most`, none beginning at or after `limit_s`."""
    count = _skip(s, i, most, limit_s)
    lossy = s.sparse == 1 and s.control_globals[i, GlobalControl.FAN_OUT] < 1.0
    for k in range(s.running_count[i]):
        r = s.running[i, k]
        s.slot_plan[i, r] = 0
        s.slot_tokens[i, r] += count
        s.req_generated[i, s.slot_request[i, r]] += count
        if lossy:
            s.slot_lossy[i, r] = 1
