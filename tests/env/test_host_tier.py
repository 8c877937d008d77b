"""A host tier and late controls in the trace environment: sized by the cap, paid, reported, refused in conflict."""

from __future__ import annotations

import numpy as np
import pytest
from trace_kit import SMALL, make_batch, play

from pikv_env.config import EnvConfig
from pikv_env.snapshot import StateError
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.costs import breakdown
from pikv_runtime.ledger import Tally, check_integrity

TIGHT = {**SMALL, "pressure": 8.0, "families": ("facts-poisson",)}


def test_a_host_tier_finds_what_the_device_had_to_give_up():
    found = {}
    for host in (0.0, 3.0):
        batch = make_batch(host=host, **TIGHT)
        batch.reset_lane(0, workload=0)
        assert batch.state.host_cap[0] == int(host * batch.state.cap_bytes[0])
        play(batch)
        check_integrity(batch.state, 0)
        found[host] = batch.state.tally[0].copy(), breakdown(batch.state, 0), batch.score(0)
    (without, dear, low), (tally, costs, score) = found[0.0], found[3.0]
    assert tally[Tally.HIT_TOKENS] > without[Tally.HIT_TOKENS] and tally[Tally.HOST_HIT_TOKENS] > 0
    assert costs.time_s["host"] == pytest.approx(tally[Tally.HOST_BYTES] * 2e-10)
    assert costs.host_bytes_mean > 0 == dear.host_bytes_mean == dear.time_s["host"]
    assert score.latency < low.latency, "less is computed anew"
    assert costs.resident_bytes_peak <= batch.cap_total(0) and score.memory <= 1.05 * low.memory


def test_a_late_control_is_another_episode_and_a_prompt_one_the_same():
    tallies = []
    for runtime in ({}, {"control_latency_s": 0.0}, {"control_latency_s": 1.5}):
        batch = make_batch(runtime=runtime, **TIGHT)
        batch.reset_lane(0, workload=0)
        play(batch, np.random.default_rng(0))
        check_integrity(batch.state, 0)
        tallies.append(batch.state.tally[0].copy())
    np.testing.assert_array_equal(tallies[0], tallies[1])
    assert (tallies[0] != tallies[2]).any() and tallies[2][Tally.EVICTED_PAGES] > 0


def test_a_state_belongs_to_a_pool_with_the_same_host():
    one, other = (make_batch(host=host, **TIGHT) for host in (1.0, 2.0))
    one.reset_lane(0, workload=0)
    with pytest.raises(StateError, match="another pool"):
        other.set_state(0, one.get_state(0))


def test_two_sizes_of_one_tier_are_refused():
    with pytest.raises(ValueError, match=r"host=2.0 and runtime.host_bytes=4096: give one of them"):
        EnvConfig(host=2.0, runtime=RuntimeConfig(host_bytes=4096))
    with pytest.raises(ValueError, match=r"host=-1.0: allowed 0 to 1000"):
        EnvConfig(host=-1.0)
