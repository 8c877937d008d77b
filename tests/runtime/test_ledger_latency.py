"""Control latency: a control comes into force so much later than it was decided, and not before."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ledger_lab import BLOCK_BYTES, GROUPS, bank, load, make, random_control, workload

from pikv_runtime import ledger as lg
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import GLOBAL_FEATURES, GROUP_FEATURES, Control, GlobalControl, GlobalFeature
from pikv_runtime.ledger.drive import replay_signals, run_interval, stage
from pikv_runtime.ledger.state import Price, Tally

PAGES, INTERVAL_S, DECISION_S = 24, 0.3, 1e-4
BANK = bank(pages=PAGES)
OWN = {"rank_s", "unsettled", "latency_s", "staged_groups", "staged_globals", "staged_s"}


def build(latency_s=0.0, ranks=1):
    options = {"interval_s": INTERVAL_S, "observe_tokens": 8, "observe": "drawn", "control_latency_s": latency_s}
    s = make(ranks=ranks, pages=PAGES, slots=4, blocks=110, requests=24, **options)
    s.prices[:, Price.DECISION] = DECISION_S
    return s


class ByHand:
    """A ledger that knows of no latency, and somebody who waits before telling it the control."""

    def __init__(self, s, latency_s):
        self.s, self.latency_s, self.waiting, self.due_s = s, latency_s, None, np.inf

    def decide(self, control):
        self.tell()
        self.waiting, self.due_s = control, self.s.clock_s[0] + self.latency_s
        self.tell()
        self.s.pending_s[0] += DECISION_S
        self.s.tally[0, Tally.DECISION_S] += DECISION_S

    def tell(self):
        if self.s.clock_s[0] < self.due_s:
            return
        self.s.control_groups[0], self.s.control_globals[0] = self.waiting.groups, self.waiting.globals
        lg.apply_control(self.s, 0)
        self.due_s = np.inf

    def run_interval(self):
        s = self.s
        while s.clock_s[0] < s.interval_end_s[0] and s.unfinished[0] > 0:
            self.tell()
            if lg.plan(s, 0) == 0:
                coming = s.req_arrival_s[0, s.next_arrival[0]] if s.next_arrival[0] < s.num_requests[0] else np.inf
                until_s = min(s.interval_end_s[0], coming, self.due_s)
                lg.advance(s, 0, max(1e-9, until_s - s.clock_s[0]))
                continue
            replay_signals(s, 0, BANK)
            lg.commit(s, 0, lg.price(s, 0))
        while s.interval_end_s[0] <= s.clock_s[0]:
            s.interval_end_s[0] += s.interval_s[0]


@pytest.mark.parametrize("latency_s", [0.0, 0.07, INTERVAL_S])
@pytest.mark.parametrize("gap_s", [0.15, 1.0])
def test_a_late_control_is_one_that_somebody_kept_back(latency_s, gap_s):
    rng = np.random.default_rng(3)
    requests = workload(rng, count=24, pages=PAGES, gap_s=gap_s)
    cap = int(rng.integers(25, 70)) * BLOCK_BYTES + BLOCK_BYTES * 12
    one, other = (load(build(late_s), requests, audit=0.5) for late_s in (latency_s, 0.0))
    for s in (one, other):
        s.interval_end_s[0], s.cap_bytes[0] = INTERVAL_S, cap
    hand = ByHand(other, latency_s)
    while one.unfinished[0] > 0:
        control = random_control(rng)
        stage(one, 0, control.groups, control.globals)
        hand.decide(control)
        run_interval(one, 0, BANK, 1e9)
        hand.run_interval()
        for name, values in one._asdict().items():
            if isinstance(values, np.ndarray) and name not in OWN:
                np.testing.assert_array_equal(values, getattr(other, name), err_msg=name)
        lg.check_integrity(one, 0)
    assert one.tally[0, Tally.EVICTED_PAGES] > 0


def wide(window):
    control = Control.neutral(GROUPS)
    control.globals[GlobalControl.WINDOW] = window
    return control


def tell(s, window):
    control = wide(window)
    stage(s, 0, control.groups, control.globals)


def in_force(s):
    groups, totals = np.zeros((GROUPS, len(GROUP_FEATURES)), np.float32), np.zeros(len(GLOBAL_FEATURES), np.float32)
    lg.write_telemetry(s, 0, groups, totals)
    return totals[GlobalFeature.PREVIOUS_WINDOW] * 16


def test_telemetry_describes_the_control_in_force_and_a_newer_decision_overtakes_a_waiting_one():
    s = load(build(0.2), workload(np.random.default_rng(0), count=2, pages=PAGES, gap_s=1e-3))
    s.interval_end_s[0] = INTERVAL_S
    tell(s, 5)
    assert in_force(s) == 1  # the lab's own window
    s.clock_s[0] = 0.1
    tell(s, 7)  # before the first arrived
    s.clock_s[0] = 0.25
    run_interval(s, 0, BANK, 0.26)
    assert in_force(s) == 1, "the first never comes into force, the second is due at 0.3 s"
    s.clock_s[0] = 0.32
    tell(s, 9)  # the second has arrived: the third does not take its place
    assert in_force(s) == 7


def test_a_skipped_stretch_of_iterations_stops_where_the_control_is_due():
    alone = [r for r in workload(np.random.default_rng(1), count=8, pages=PAGES) if r.output_tokens > 20][:1]
    s = load(build(0.2), alone)
    s.observe_tokens, s.interval_s[0], s.interval_end_s[0] = 8, 60.0, 60.0
    s.req_arrival_s[0, 0] = 0.0
    tell(s, 5)
    windows = []
    while s.clock_s[0] < 0.4 and s.unfinished[0] > 0:
        run_interval(s, 0, BANK, s.clock_s[0] + 1e-4)
        windows.append((float(s.clock_s[0]), int(s.window[0])))
    iteration_s = max(b[0] - a[0] for a, b in itertools.pairwise(windows))
    first = next(at for at, window in windows if window == 5)
    assert 0.2 <= first <= 0.2 + 2 * iteration_s


@pytest.mark.parametrize("latency_s", [-0.1, 2.1, float("nan")])
def test_a_latency_beyond_the_interval_is_refused(latency_s):
    with pytest.raises(ValueError, match=r"control_latency_s=.*allowed 0 to interval_s=2"):
        RuntimeConfig(interval_s=2.0, control_latency_s=latency_s)
