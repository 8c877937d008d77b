"""Skipping quiet iterations changes nothing: every array of the ledger is the same to the last bit, step by step."""

from __future__ import annotations

import numpy as np
import pytest
from ledger_lab import BLOCK_BYTES, bank, load, make, random_control, request, workload

from pikv_runtime import ledger as lg
from pikv_runtime.ledger.drive import next_event_s, put_into_force, replay_signals, run_interval, stage
from pikv_runtime.ledger.quiet import quiet_iterations
from pikv_runtime.ledger.state import Tally

PAGES = 24
BANK = bank(pages=PAGES)
SCRATCH = {"rank_s", "unsettled"}  # what lies there between iterations means nothing


def build(ranks):
    options = {"interval_s": 0.3, "observe_tokens": 8, "observe": "drawn"}
    return make(ranks=ranks, pages=PAGES, slots=4, blocks=110, requests=24, **options)


def by_single_iterations(s):
    """One interval as the live engine runs it. Returns how many of its iterations were quiet."""
    quiet = 0
    while s.clock_s[0] < s.interval_end_s[0] and s.unfinished[0] > 0:
        put_into_force(s, 0)
        ahead = quiet_iterations(s, 0)
        if lg.plan(s, 0) == 0:
            lg.advance(s, 0, max(1e-9, next_event_s(s, 0, s.interval_end_s[0]) - s.clock_s[0]))
            continue
        quiet += ahead > 0
        replay_signals(s, 0, BANK)
        lg.commit(s, 0, lg.price(s, 0))
    while s.interval_end_s[0] <= s.clock_s[0]:
        s.interval_end_s[0] += s.interval_s[0]
    return quiet


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("gap_s", [0.15, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_skipping_ahead_ends_where_single_iterations_end(ranks, gap_s, seed):
    rng = np.random.default_rng(seed)
    requests = workload(rng, count=24, pages=PAGES, gap_s=gap_s)
    cap = int(rng.integers(25, 70)) * BLOCK_BYTES // ranks + BLOCK_BYTES * 12
    one, other = (load(build(ranks), requests, audit=0.5) for _ in range(2))
    for s in (one, other):
        s.interval_end_s[0], s.cap_bytes[0] = s.interval_s[0], cap
    quiet = 0
    while one.unfinished[0] > 0:
        control = random_control(rng)
        for s in (one, other):
            stage(s, 0, control.groups, control.globals)
        run_interval(one, 0, BANK, 1e9)
        quiet += by_single_iterations(other)
        for name, values in one._asdict().items():
            if isinstance(values, np.ndarray) and name not in SCRATCH:
                np.testing.assert_array_equal(values, getattr(other, name), err_msg=name)
    assert quiet > (0.05 if gap_s == 1.0 else 0.01) * one.tally[0, Tally.ITERATIONS]


def test_who_arrives_ends_the_quiet():
    alone = request(0, 8, 60, content=-1, pages=PAGES)
    late = request(1, 8, 4, arrival=0.101, content=-1, pages=PAGES)
    s = load(make(pages=PAGES, slots=4, observe_tokens=64), [alone, late])
    s.interval_s[0] = s.interval_end_s[0] = 60.0
    run_interval(s, 0, BANK, 1e9)
    waited = s.req_first_s[0, 1] - s.req_arrival_s[0, 1]
    assert waited < 0.05, "it is admitted in the next iteration, not when the first request opens a page"
