"""What telemetry may not tell and lanes may not share: the future, lengths, identities, audits, other episodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from trace_kit import make_batch, neutral_controls, random_controls

from pikv_agents.rollout import Job, run_jobs
from pikv_env.batch import TraceBatch
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.controllers import make_policy
from pikv_runtime.ledger import Status, Tally
from pikv_runtime.ledger.state import Ledger

RUNTIME = {"codec": "bf16", "read": "sparse", "router": "centroid", "slots": 16, "blocks": 4096}


def twins(change: Callable[[Ledger, int], None], **fields) -> TraceBatch:
    """Two lanes of one episode; `change(state, lane)` is done to the requests of the second."""
    batch = make_batch(2, **{"horizon_s": 40.0, "load": 0.5, **fields})
    for i in range(2):
        batch.reset_lane(i, workload=0, pressure=2.0)
    change(batch.state, 1)
    return batch


def told_alike(batch: TraceBatch, rng: np.random.Generator) -> bool:
    """One interval under the same random control in both lanes; whether telemetry agrees bit for bit."""
    random_controls(batch, rng)
    batch.control_groups[1], batch.control_globals[1] = batch.control_groups[0], batch.control_globals[0]
    batch.step()
    return np.array_equal(batch.groups[0], batch.groups[1]) and np.array_equal(batch.globals[0], batch.globals[1])


def test_the_future_is_not_told() -> None:
    change_s = 20.0

    def other_future(s: Ledger, lane: int) -> None:
        n = s.num_requests[lane]
        later = np.flatnonzero(s.req_arrival_s[lane, :n] > change_s)
        mixed = np.random.default_rng(0).permutation(later)
        assert len(later) > 10
        for name in ("prompt", "output", "class", "content", "audited", "hashes"):
            column = getattr(s, f"req_{name}")
            column[lane, later] = column[lane, mixed]

    batch, rng, alike = twins(other_future), np.random.default_rng(1), []
    while not batch.done.any():
        same = told_alike(batch, rng)
        # An iteration may begin before the change and end after it, but nobody arrives within it.
        alike.append((batch.state.interval_end_s[0] - 2.0 <= change_s, same))
    assert all(same for before, same in alike if before)
    assert not all(same for before, same in alike if not before)


def test_output_lengths_are_not_told_before_the_end() -> None:
    runtime = RuntimeConfig(**RUNTIME, interval_s=0.05)

    def shorter(s: Ledger, lane: int) -> None:
        s.req_output[lane] = np.where(s.req_output[lane] > 20, s.req_output[lane] * 2 // 3, s.req_output[lane])

    batch, rng, before, after = twins(shorter, runtime=runtime, load=0.3), np.random.default_rng(2), 0, 0
    decoded = 0
    while not batch.done.any() and after < 20:
        s, same = batch.state, told_alike(batch, rng)
        if (s.req_status[1] == Status.DONE).any():
            after += not same
            continue
        assert same
        before += 1
        decoded += int(s.req_generated[0].max() > 5)
    assert decoded >= 3, "some request must have decoded for a while in both lanes"
    assert after > 0


def test_identities_are_not_told() -> None:
    """Block hashes are names: any other names give the same episode, bit for bit."""

    def renamed(s: Ledger, lane: int) -> None:
        names = np.unique(s.req_hashes[lane])
        fresh = np.random.default_rng(3).choice(2**62, len(names), replace=False) + 1
        s.req_hashes[lane] = np.where(names == 0, 0, fresh)[np.searchsorted(names, s.req_hashes[lane])]

    batch, rng = twins(renamed), np.random.default_rng(4)
    assert (batch.state.req_hashes[0] != batch.state.req_hashes[1]).any()
    while not batch.done.any():
        assert told_alike(batch, rng)
        np.testing.assert_array_equal(batch.state.tally[0], batch.state.tally[1])
    assert batch.done.all()
    assert batch.state.tally[0, Tally.HIT_TOKENS] > 0, "without a prefix hit, names do not matter"


def test_lanes_do_not_influence_one_another() -> None:
    rewards = []
    for wild in (False, True):
        batch, rng, trail = make_batch(3, horizon_s=20.0), np.random.default_rng(5), []
        for i in range(3):
            batch.reset_lane(i, workload=1, pressure=2.0)
        while not batch.done[1]:
            if wild:
                random_controls(batch, rng)
                batch.control_globals[0] = np.nan
            else:
                neutral_controls(batch)
            neutral = Control.neutral(batch.num_groups)
            batch.control_groups[1], batch.control_globals[1] = neutral.groups, neutral.globals
            trail.append((batch.step()[1], batch.groups[1].copy()))
        rewards.append(trail)
    for (one, told), (other, also) in zip(*rewards, strict=True):
        assert one == other
        np.testing.assert_array_equal(told, also)


class Scribbler:
    """Overwrites the telemetry that it was told."""

    name = "scribbler"

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        out = make_policy("lru").decide(telemetry, out)
        telemetry.groups[:], telemetry.globals[:] = np.nan, np.inf
        return out


def test_forging_telemetry_changes_nothing() -> None:
    batch = make_batch(2, horizon_s=20.0)
    honest, forged = run_jobs(batch, [Job(make_policy("lru"), 0, 2.0), Job(Scribbler(), 0, 2.0)])
    assert honest.score == forged.score


def test_a_workload_without_audits_is_drawn_again() -> None:
    rare = RuntimeConfig(**RUNTIME, audit_share=1e-9)
    with pytest.raises(ValueError, match="nothing would be lost"):
        make_batch(1, runtime=rare, horizon_s=10.0)
    unmeasured = make_batch(1, runtime=RuntimeConfig(**RUNTIME, audit_share=0.0), horizon_s=10.0)
    assert unmeasured.pool.prepared[0].reference.audited == 0


def test_a_workload_that_even_u_cannot_finish_is_drawn_again() -> None:
    batch = make_batch(1, families=("copy-onoff",), workloads=6, horizon_s=20.0, load=0.7)
    assert max(p.reference.duration_s for p in batch.pool.prepared) <= 1.5 * 20.0
