"""Whatever is asked of the ledger in whatever order, its invariants hold after every step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from ledger_lab import (
    BLOCK_BYTES,
    GROUPS,
    LAYERS,
    PAGES,
    bank,
    load,
    make,
    put,
    random_control,
    workload,
)

from pikv_runtime import ledger as lg
from pikv_runtime.block_rules import BLOCK_RULES, Orders, make_block_rule
from pikv_runtime.contract import (
    GLOBAL_FEATURES,
    GROUP_FEATURES,
    Control,
    GlobalControl,
    clip_control,
)
from pikv_runtime.ledger.drive import replay_signals
from pikv_runtime.ledger.rule_room import with_orders
from pikv_runtime.ledger.schedule import preempt
from pikv_runtime.ledger.utility import always_on

SLOTS, REQUESTS = 3, 14
RULES = [name for name in BLOCK_RULES.names() if not BLOCK_RULES[name].offline]
LEDGERS = {
    (ranks, lossy): make(ranks=ranks, slots=SLOTS, blocks=28, requests=REQUESTS, share_lossy=lossy, host_bytes=1)
    for ranks in (1, 2, 4)
    for lossy in (False, True)
}
BANK = bank()


class LedgerMachine(RuleBasedStateMachine):
    operations = 0
    """Operations on any ledger so far; each is followed by a check of all invariants."""
    starts = RULES
    """Block rules that a ledger may begin with."""

    @initialize(
        seed=st.integers(0, 2**32 - 1),
        ranks=st.sampled_from([1, 2, 4]),
        lossy=st.booleans(),
        blocks=st.integers(3, 14),
        hosted=st.sampled_from([0, 0, 3, 12]),
        data=st.data(),
    )
    def start(self, seed, ranks, lossy, blocks, hosted, data):
        self.rng, self.key, self.cancelled = np.random.default_rng(seed), (ranks, lossy), 0
        self.s = LEDGERS[self.key]
        self.s.cap_bytes[0] = blocks * BLOCK_BYTES + int(self.rng.integers(BLOCK_BYTES))
        self.s.host_cap[0] = hosted * BLOCK_BYTES // 2
        load(self.s, workload(self.rng, REQUESTS), audit=0.5)
        self._follow(data.draw(st.sampled_from(self.starts)))

    @rule(steps=st.integers(1, 12))
    def serve(self, steps):
        for _ in range(steps):
            if lg.plan(self.s, 0) == 0:
                lg.advance(self.s, 0, 0.05)
                continue
            replay_signals(self.s, 0, BANK)
            lg.commit(self.s, 0, lg.price(self.s, 0))
            lg.check_integrity(self.s, 0)

    @rule()
    def plan_and_think_again(self):
        lg.plan(self.s, 0)

    @rule()
    def control(self):
        s = self.s
        before, live = s.block_codec.copy(), s.page_live.copy()
        control = random_control(self.rng, s.control_groups.shape[1])
        window = max(control.globals[GlobalControl.WINDOW], s.control_globals[0, GlobalControl.WINDOW])
        control.globals[GlobalControl.WINDOW] = window  # growing: what was always on stays so
        pinned = self._always_on_codecs()
        put(s, control)
        kept = (s.block_codec >= 0) & (before >= 0)
        assert (s.block_codec[kept] >= before[kept]).all(), "the ladder only moves down"
        assert (s.page_live <= live).all()
        for (r, p), codecs in pinned.items():
            now = s.block_codec[0, s.page_block[0, r, p]]
            assert (now == codecs).all(), "an always-on page was evicted or demoted"

    def _always_on_codecs(self):
        s = self.s
        return {
            (r, p): s.block_codec[0, s.page_block[0, r, p]].copy()
            for r in range(SLOTS)
            for p in range(s.slot_pages[0, r])
            if s.slot_request[0, r] >= 0 and always_on(s, 0, r, p)
        }

    @rule()
    def absurd_control(self):
        control = Control.zeros(self.s.control_groups.shape[1])
        for values in (control.groups, control.globals):
            values[:] = self.rng.choice([np.nan, np.inf, -np.inf, 1e30, -1.0, 0.0], values.shape)
        assert clip_control(control) > 0
        put(self.s, control)

    @rule(q=st.integers(0, REQUESTS - 1))
    def cancel(self, q):
        s = self.s
        before, left = lg.Status(s.req_status[0, q]), int(s.unfinished[0])
        went = lg.cancel(s, 0, q)
        assert went == (before in (lg.Status.FUTURE, lg.Status.WAITING, lg.Status.RUNNING))
        assert s.unfinished[0] == left - went and q not in s.slot_request[0]
        self.cancelled += went

    @rule()
    def preempt_the_latest(self):
        s = self.s
        if s.running_count[0]:
            preempt(s, 0, int(s.running[0, s.running_count[0] - 1]))

    @rule(block_rule=st.sampled_from(RULES))
    def follow_another_rule(self, block_rule):
        self._follow(block_rule)

    def _follow(self, block_rule):
        """The record may be another one afterwards, which shares its arrays."""
        self.s = LEDGERS[self.key] = with_orders(self.s, 0, Orders(make_block_rule(block_rule)))

    @rule()
    def observe_anything(self):
        s = self.s
        for r in np.flatnonzero(s.slot_request[0] >= 0):
            mass = self.rng.dirichlet(np.ones(PAGES), LAYERS).astype(np.float32)
            lg.observe(s, 0, int(r), mass, self.rng.normal(size=(LAYERS, PAGES)).astype(np.float32))

    @rule()
    def telemetry(self):
        groups = np.zeros((GROUPS, len(GROUP_FEATURES)), np.float32)
        totals = np.zeros(len(GLOBAL_FEATURES), np.float32)
        lg.write_telemetry(self.s, 0, groups, totals)
        for values, columns in ((groups, GROUP_FEATURES), (totals, GLOBAL_FEATURES)):
            low, high = np.array([c.low for c in columns]), np.array([c.high for c in columns])
            assert ((values >= low - 1e-5) & (values <= high + 1e-5)).all(), "telemetry out of its range"

    @invariant()
    def holds(self):
        if not hasattr(self, "s"):
            return
        type(self).operations += 1
        s = self.s
        lg.check_integrity(s, 0)
        assert s.tally[0].min() >= 0
        assert (s.bytes_rank[0] >= s.cached_bytes[0]).all()
        assert (s.bytes_rank[0] <= s.cap_bytes[0]).all(), "a rank holds more than its cap"
        assert (s.host_bytes[0] <= s.host_cap[0]).all(), "a host holds more than its cap"

    def teardown(self):
        if not hasattr(self, "s"):
            return
        for _ in range(4000):
            if self.s.unfinished[0] <= 0:
                break
            if lg.plan(self.s, 0) == 0:
                lg.advance(self.s, 0, 0.05)
            else:
                lg.commit(self.s, 0, lg.price(self.s, 0))
        assert self.s.unfinished[0] == 0, "somebody starves"
        assert self.s.bytes_rank[0].sum() == self.s.cached_bytes[0].sum(), "bytes left behind"
        ended = np.bincount(self.s.req_status[0], minlength=len(lg.Status))
        assert ended[: lg.Status.DONE].sum() == 0 and ended[lg.Status.CANCELLED] == self.cancelled
        assert abs(self.s.waiting_rate[0]) + abs(self.s.decode_rate[0]) < 1e-9, "somebody is charged for ever"
        lg.check_integrity(self.s, 0)


OPTIONS = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


def test_invariants_hold():
    run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=40, stateful_step_count=25, **OPTIONS))


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_invariants_hold_for_a_hundred_thousand_operations(name):
    """That many over all block rules: each begins its share."""

    class Machine(LedgerMachine):
        operations, starts = 0, [name]

    steps = 100
    examples = -(-100_000 // (steps * len(RULES)))
    while Machine.operations * len(RULES) < 100_000:  # an example may end before its last step
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=examples, stateful_step_count=steps, **OPTIONS)
        )
