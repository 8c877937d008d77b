"""`CostBreakdown`: physical units, read off a lane."""

from __future__ import annotations

import json

import numpy as np
import pytest
from trace_kit import make_batch, play

from pikv_env.episode import costs
from pikv_runtime.costs import breakdown, latency_charges
from pikv_runtime.ledger.state import Status, Tally


@pytest.fixture(scope="module", params=[1, 2])
def batch(request):
    batch = make_batch(2, ranks=request.param, drain=0.03)
    batch.reset_lane(0, workload=0, pressure=1.0)
    batch.reset_lane(1, workload=1, pressure=8.0)
    play(batch, np.random.default_rng(1))
    return batch


@pytest.mark.parametrize("lane", [0, 1])
def test_time_parts_make_up_the_busy_time(batch, lane: int) -> None:
    cost = costs(batch, lane)
    pending = batch.state.pending_s[lane]  # what the next iteration would have paid
    assert sum(cost.time_s.values()) == pytest.approx(cost.busy_s + pending, rel=1e-9)
    assert cost.busy_s <= cost.duration_s
    assert (cost.time_s["link"] > 0) == (batch.config.ranks == 2)


@pytest.mark.parametrize("lane", [0, 1])
def test_per_request_times(batch, lane: int) -> None:
    s, cost = batch.state, costs(batch, lane)
    n = s.num_requests[lane]
    done = s.req_status[lane, :n] == Status.DONE
    assert cost.ttft_s.shape == cost.tpot_s.shape == (n,)
    assert not np.isnan(cost.ttft_s[done]).any()
    np.testing.assert_array_equal(np.isnan(cost.tpot_s), ~done)
    assert (cost.ttft_s[done] > 0).all() and (cost.tpot_s[done] >= 0).all()
    charged = latency_charges(s, lane) + np.where(done, 0.0, batch.prepared(lane).reference.charges[:n])
    assert charged.sum() == pytest.approx(s.tally[lane, Tally.LATENCY_CHARGE], rel=1e-6)
    assert cost.worst.latency_charge == pytest.approx(charged.max())


@pytest.mark.parametrize("lane", [0, 1])
def test_bytes_stay_under_the_cap(batch, lane: int) -> None:
    cost = costs(batch, lane)
    assert 0 < cost.resident_bytes_mean <= cost.resident_bytes_peak <= batch.cap_total(lane)
    assert len(cost.resident_bytes_by_rank) == batch.config.ranks
    assert max(cost.resident_bytes_by_rank) <= batch.state.cap_bytes[lane]


@pytest.mark.parametrize("lane", [0, 1])
def test_classes_add_up(batch, lane: int) -> None:
    s, cost = batch.state, costs(batch, lane)
    n = int(s.num_requests[lane])
    assert sum(c.requests for c in cost.classes) == n
    assert sum(c.finished for c in cost.classes) == (s.req_status[lane, :n] == Status.DONE).sum()
    assert all(0 <= c.slo_share <= 1 for c in cost.classes)
    assert 0 <= cost.wished_mass_share <= 1 and 0 <= cost.hit_share <= 1
    assert 0 < cost.worst.loss <= 1
    assert s.req_audited[lane, cost.worst.loss_request] == 1
    assert cost.counters["hit_tokens"] <= cost.counters["prompt_tokens"]


def test_json_is_strict_and_complete(batch) -> None:
    read = json.loads(costs(batch, 1).to_json())
    assert set(read) >= {"time_s", "ttft_s", "tpot_s", "resident_bytes_peak", "counters", "classes", "worst"}
    assert len(read["ttft_s"]) == int(batch.state.num_requests[1])


def test_before_anything_happened() -> None:
    fresh = make_batch(1)
    fresh.reset_lane(0)
    cost = breakdown(fresh.state)
    assert cost.duration_s == cost.busy_s == cost.waiting_s == cost.resident_bytes_mean == 0.0
    assert np.isnan(cost.ttft_s).all()
    assert cost.worst.loss_request == -1
    json.loads(cost.to_json())
