"""Block rules and page orders in the trace environment: by lane, through states and records; offline ones only here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from trace_kit import library, make_batch

from pikv_agents.rollout import Job, run_jobs
from pikv_env.episode_record import EpisodeRecorder
from pikv_env.replay import Replayer
from pikv_env.snapshot import LaneState
from pikv_runtime.block_rules import CLAIRVOYANT, Orders, make_block_rule, orders_of
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.controllers import make_policy
from pikv_runtime.engine import Engine
from pikv_runtime.ledger import check_integrity

EPISODE = {"horizon_s": 120.0, "families": ("facts-poisson",), "workloads": 1}
PRESSURE = 3.0


def orders(rule, page="weights"):
    return Orders(make_block_rule(rule), page)


def play(batch, lanes, spec="lazy/h2o", intervals=10**6):
    policy = make_policy(spec)
    for _ in range(intervals):
        if batch.done[list(lanes)].all():
            return
        for i in lanes:
            told, asked = (
                Telemetry(batch.groups[i], batch.globals[i]),
                Control(batch.control_groups[i], batch.control_globals[i]),
            )
            policy.decide(told, asked)
        batch.step()


def test_a_spec_brings_its_rule_to_its_lane_and_the_next_job_its_own():
    batch = make_batch(2, **EPISODE)
    specs = ["lazy/h2o", "lazy/h2o+sieve", "lazy/h2o+belady", "lazy/h2o"]
    outcomes = run_jobs(batch, [Job(make_policy(spec), 0, PRESSURE) for spec in specs])
    assert outcomes[0].score == outcomes[3].score
    alone = run_jobs(make_batch(1, **EPISODE), [Job(make_policy(specs[1]), 0, PRESSURE)])
    assert alone[0].score == outcomes[1].score
    hits = [outcome.counters["hit_rate"] for outcome in outcomes]
    assert hits[2] >= max(hits) and len(set(hits)) > 1, "the rules make no difference here"


def test_the_configured_rule_is_in_force_where_a_policy_names_none():
    runtime = {"codec": "bf16", "read": "sparse", "router": "centroid", "block_rule": "sieve"}
    configured = run_jobs(make_batch(1, runtime=runtime, **EPISODE), [Job(make_policy("lazy/h2o"), 0, PRESSURE)])
    plain = {**runtime, "block_rule": "utility"}
    named = run_jobs(make_batch(1, runtime=plain, **EPISODE), [Job(make_policy("lazy/h2o+sieve"), 0, PRESSURE)])
    assert configured[0].score == named[0].score
    with pytest.raises(ValueError, match="unknown block rule 'seive'"):
        RuntimeConfig(block_rule="seive")


@pytest.mark.parametrize("rule", ["arc", "tlru", "belady"])
def test_a_state_carries_its_rule_into_a_ledger_without_room_for_it(rule):
    one, other = make_batch(1, **EPISODE), make_batch(1, **EPISODE)
    one.reset_lane(0, 0, PRESSURE, orders=orders(rule, CLAIRVOYANT if rule == "belady" else "weights"))
    plain = one.get_state(0) if rule == "arc" else None
    play(one, [0], intervals=25)
    state = LaneState.from_bytes(one.get_state(0).to_bytes())
    other.reset_lane(0, 0, PRESSURE)
    assert other.state.queue_next.size == other.state.block_past.size == 0
    other.set_state(0, state)
    assert other.orders[0] == one.orders[0]
    for batch in (one, other):
        play(batch, [0])
        check_integrity(batch.state, 0)
    assert one.score(0) == other.score(0)
    assert plain is None or plain.to_bytes() != state.to_bytes()


def test_a_state_without_needs_fits_a_ledger_with_room():
    one, other = make_batch(1, **EPISODE), make_batch(1, **EPISODE)
    one.reset_lane(0, 0, PRESSURE)
    play(one, [0], intervals=10)
    other.reset_lane(0, 0, PRESSURE, orders=orders("s3fifo"))
    play(other, [0], intervals=10)
    other.set_state(0, one.get_state(0))
    for batch in (one, other):
        play(batch, [0])
    assert one.score(0) == other.score(0)


def test_a_record_replays_under_its_rule():
    batch = make_batch(1, **EPISODE)
    batch.reset_lane(0, 0, PRESSURE, orders=orders("tlru:threshold=0.1"))
    recorder, policy = EpisodeRecorder(batch, 0, "lazy"), make_policy("lazy/h2o")
    while not batch.done[0]:
        policy.decide(
            Telemetry(batch.groups[0], batch.globals[0]), Control(batch.control_groups[0], batch.control_globals[0])
        )
        batch.step()
        recorder.add()
    record = recorder.record()
    assert record.header["episode"]["block_rule"] == "tlru:threshold=0.1"
    assert Replayer(library()).replay(record).identical
    changed = {**record.header, "episode": {**record.header["episode"], "block_rule": "fifo"}}
    assert not Replayer(library()).replay(replace(record, header=changed)).identical


def test_clairvoyant_pages_are_what_attention_is_still_to_come():
    batch = make_batch(1, **{**EPISODE, "pressure": 1.0})
    batch.reset_lane(0, 0, 0.5, orders=orders("utility", CLAIRVOYANT))
    seen = 0
    for _ in range(30):
        play(batch, [0], intervals=1)
        s = batch.state
        for r in np.flatnonzero(s.slot_request[0] >= 0):
            q = int(s.slot_request[0, r])
            if s.page_foreseen[0, r] != (q + 1) * 1024 + s.req_preempted[0, q]:
                continue  # not yet in an iteration
            future = _future(batch, q)
            np.testing.assert_allclose(s.page_future[0, r], future, atol=1e-4)
            seen += int(future.sum() > 0)
    assert seen > 5


def _future(batch, q):
    from pikv_runtime.ledger.observe import observed_step

    s, bank, content = batch.state, batch.bank, int(batch.state.req_content[0, q])
    total = np.zeros(bank.mass.shape[2:])
    steps, done = int(s.req_output[0, q]) - 1, int(s.req_generated[0, q]) - 1
    for o in range(-(-steps // s.observe_tokens)):
        step = observed_step(s, 0, q, o)
        if max(done, 0) <= step < steps:
            total += bank.mass[content, min(o, bank.mass.shape[1] - 1)]
    return total


def test_clairvoyant_eviction_loses_least():
    """As many bytes go every interval; who knows the future loses less than who looks at the past. All requests are
    audited: the order does not know who is."""
    losses, runtime = {}, {"codec": "bf16", "read": "sparse", "router": "centroid", "audit_share": 1.0}
    for ranker in ("clairvoyant", "h2o", "lru", "streaming_llm"):
        policy = make_policy(f"static:evict=0.25/{ranker}")
        batch = make_batch(1, runtime=runtime, **EPISODE)
        batch.reset_lane(0, 0, 0.5, orders=orders_of(policy, "utility"))
        play(batch, [0], policy.name)
        losses[ranker] = 1 - batch.score(0).fidelity
    assert losses["clairvoyant"] < 0.9 * min(v for k, v in losses.items() if k != "clairvoyant"), losses


@pytest.mark.parametrize("spec,part", [("lazy/h2o+belady", "belady"), ("lazy/clairvoyant", "clairvoyant")])
def test_the_live_engine_refuses_who_knows_the_future(spec, part):
    with pytest.raises(ValueError, match=f"{part}' knows the future; only the trace environment can play it"):
        Engine(object(), RuntimeConfig(), policy=spec)
    with pytest.raises(ValueError, match="knows the future"):
        Engine(object(), RuntimeConfig(block_rule="belady"))
