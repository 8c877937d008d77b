"""Driving lanes by recorded signals: the trace environment's inner loop, and the uncapped exact reference run U.

The live engine makes the same calls in the same order (plan, signals, price, commit), with a forward pass between.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pikv_runtime.ledger.commit import advance, commit, filled_pages, tag_page
from pikv_runtime.ledger.control import apply_control
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.observe import due, observe, observed_step
from pikv_runtime.ledger.pricing import price
from pikv_runtime.ledger.quiet import is_quiet, quiet_iterations, run_quiet
from pikv_runtime.ledger.schedule import plan
from pikv_runtime.ledger.setup import clear, copy_requests, observations, request_charges
from pikv_runtime.ledger.state import F4, F8, I1, I8, NO_CAP, Ledger, Price, Tally
from pikv_runtime.objective import Reference

MOST_BUSY = 0.85  # an exact run that is busier queues by itself, and would make a flattering denominator


class Bank(NamedTuple):
    """Recorded signals by content: C contents, L layers, P pages, O observations, K codecs."""

    tags: I1  # (C, L, P) late-bound expert tag
    errors: F4  # (C, P, L, K) codec error
    mass: F4  # (C, O, L, P) exact attention mass
    score: F4  # (C, O, L, P) router score

    @classmethod
    def empty(cls, layers: int, pages: int) -> Bank:
        """No recordings: pages stay untagged, nothing is observed."""
        return cls(
            np.zeros((0, layers, pages), np.int8),
            np.zeros((0, pages, layers, 4), np.float32),
            np.zeros((0, 0, layers, pages), np.float32),
            np.zeros((0, 0, layers, pages), np.float32),
        )


@jit
def _add_attention(s: Ledger, i: int, r: int, mass: F4, sign: float) -> None:
    """Add what one observation of slot `r` finds, `mass` (L, P), to what is still to come, or take it off."""
    for layer in range(s.layers):
        for p in range(s.page_future.shape[3]):
            s.page_future[i, r, layer, p] = float(s.page_future[i, r, layer, p]) + sign * float(mass[layer, p])


@jit
def foresee(s: Ledger, i: int, r: int, bank: Bank) -> None:
    """For the clairvoyant order: when a request starts in slot `r`, sum what its observations will find."""
    q = s.slot_request[i, r]
    tenant = (q + 1) * 1024 + min(s.req_preempted[i, q], 1023)
    if s.page_foreseen[i, r] == tenant:
        return
    s.page_foreseen[i, r] = tenant
    for layer in range(s.layers):
        for p in range(s.page_future.shape[3]):
            s.page_future[i, r, layer, p] = 0.0
    c, steps = s.req_content[i, q], s.req_output[i, q] - 1
    for o in range((steps + s.observe_tokens - 1) // s.observe_tokens):
        step = observed_step(s, i, q, o)
        if step < steps and step >= s.req_generated[i, q] - 1:
            _add_attention(s, i, r, bank.mass[c, min(o, bank.mass.shape[1] - 1)], 1.0)


@jit
def replay_signals(s: Ledger, i: int, bank: Bank) -> None:
    """Feed the planned iteration's recorded signals: observations that are due, tags of pages being filled."""
    for r in range(s.slot_request.shape[1]):
        q = s.slot_request[i, r]
        if q < 0 or s.slot_plan[i, r] == 0:
            continue
        c = s.req_content[i, q]
        if c < 0 or c >= bank.tags.shape[0]:
            continue
        o = due(s, i, r)
        if s.page_rule[i] == 1:
            foresee(s, i, r, bank)
            if o >= 0:
                _add_attention(s, i, r, bank.mass[c, min(o, bank.mass.shape[1] - 1)], -1.0)
        if o >= 0:
            observe(
                s, i, r, bank.mass[c, min(o, bank.mass.shape[1] - 1)], bank.score[c, min(o, bank.score.shape[1] - 1)]
            )
        first, last = filled_pages(s, i, r)
        for p in range(first, last):
            block = s.page_block[i, r, p]
            tag_page(s, i, block, bank.tags[c, :, p], bank.errors[c, p])


@jit
def next_event_s(s: Ledger, i: int, end_s: float) -> float:
    """When an idle lane next has something to do: the next arrival, a control that comes into force, or `end_s`."""
    end_s = min(end_s, s.staged_s[i])
    if s.next_arrival[i] < s.num_requests[i]:
        return min(end_s, s.req_arrival_s[i, s.next_arrival[i]])
    return end_s


@jit
def run_interval(s: Ledger, i: int, bank: Bank, limit_s: float) -> bool:
    """Run lane `i` to the end of its control interval (or of its work). Returns whether the episode is over."""
    while s.clock_s[i] < s.interval_end_s[i] and s.unfinished[i] > 0 and s.clock_s[i] < limit_s:
        put_into_force(s, i)
        quiet, running, s.unsettled[i] = quiet_iterations(s, i), s.running_count[i], 0
        if plan(s, i) == 0:
            end = min(s.interval_end_s[i], limit_s)
            advance(s, i, max(1e-9, next_event_s(s, i, end) - s.clock_s[i]))
            continue
        if quiet > 0 and is_quiet(s, i, running):
            run_quiet(s, i, quiet, min(s.interval_end_s[i], limit_s, s.staged_s[i]))
            continue
        replay_signals(s, i, bank)
        commit(s, i, price(s, i))
    while s.interval_end_s[i] <= s.clock_s[i]:
        s.interval_end_s[i] += s.interval_s[i]
    return s.unfinished[i] <= 0 or s.clock_s[i] >= limit_s


@jit
def put_into_force(s: Ledger, i: int) -> None:
    """Put the staged control into force if its time has come; called before every iteration."""
    if s.clock_s[i] < s.staged_s[i]:
        return
    s.staged_s[i] = np.inf
    for g in range(s.control_groups.shape[1]):
        for k in range(s.control_groups.shape[2]):
            s.control_groups[i, g, k] = s.staged_groups[i, g, k]
    for k in range(s.control_globals.shape[1]):
        s.control_globals[i, k] = s.staged_globals[i, k]
    apply_control(s, i)


@jit
def stage(s: Ledger, i: int, groups: F4, globals_: F4) -> None:
    """Decide a control, `groups` (N, 3) and `globals_` (17,), legal already: it comes into force after the lane's
    control latency (at once if that is 0) and takes the place of one that is still waiting. The decision is paid."""
    put_into_force(s, i)
    for g in range(s.staged_groups.shape[1]):
        for k in range(s.staged_groups.shape[2]):
            s.staged_groups[i, g, k] = groups[g, k]
    for k in range(s.staged_globals.shape[1]):
        s.staged_globals[i, k] = globals_[k]
    s.staged_s[i] = s.clock_s[i] + s.latency_s[i]
    put_into_force(s, i)
    s.pending_s[i] += s.prices[i, Price.DECISION]
    s.tally[i, Tally.DECISION_S] += s.prices[i, Price.DECISION]


@jit
def _run_all(s: Ledger, i: int, bank: Bank, live: F8) -> None:
    """Run to the end, sampling live (not cached) bytes at every interval's end into `live` (2,): sum, peak."""
    done = False
    count = 0
    while not done:
        done = run_interval(s, i, bank, 1e18)
        held = 0.0
        for rank in range(s.ranks):
            held += s.bytes_rank[i, rank] - s.cached_bytes[i, rank]
        live[0] += held
        live[1] = max(live[1], held)
        count += 1
    live[0] /= max(1, count)


class SaturatedError(ValueError):
    """A workload that even the uncapped exact run can hardly serve."""


def reference_run(s: Ledger, lane: int, bank: Bank, scratch: Ledger, most_busy: float = MOST_BUSY) -> Reference:
    """Run U for the requests loaded in `lane`: no cap, exact reading, neutral control, the same prices.

    `scratch` is a one-lane ledger built like `s` (it is cleared); `s` stays as it is.

    Raises:
        SaturatedError: U keeps the machine busy for more than `most_busy` of its duration: no fair denominator.
    """
    clear(scratch, 0)
    copy_requests(scratch, 0, s, lane)
    scratch.cap_bytes[0] = NO_CAP
    scratch.prices[0] = s.prices[lane]
    scratch.interval_s[0] = s.interval_s[lane]
    scratch.interval_end_s[0] = s.interval_s[lane]
    exact = scratch._replace(sparse=0, codec_bytes=_plain_bytes(s))
    live = np.zeros(2)
    _run_all(exact, 0, bank, live)
    n = s.num_requests[lane]
    charges = np.zeros(s.req_arrival_s.shape[1])
    request_charges(exact, 0, charges)
    weights = s.class_fidelity[lane, s.req_class[lane, :n]] * s.req_audited[lane, :n]
    duration = float(exact.clock_s[0])
    busy = float(exact.tally[0, Tally.BUSY_S]) / duration
    if busy > most_busy:
        raise SaturatedError(f"the uncapped exact run is busy {busy:.0%} of the time, at most {most_busy:.0%} is fair")
    return Reference(
        latency=float(charges.sum()),
        duration_s=duration,
        audited=float((weights * observations(s, lane)).sum() * s.layers),
        charges=charges,
        busy_share=busy,
        live_bytes_mean=float(live[0]),
        live_bytes_peak=float(live[1]),
    )


def _plain_bytes(s: Ledger) -> I8:
    """Page bytes of U: exact reading keeps no centroids."""
    return s.codec_bytes - (s.ghost_bytes if s.sparse == 1 else 0)
