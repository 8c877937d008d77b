"""Policies that come and go while requests are served: swaps, shadows and logs change nothing but who decides."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from bundle_kit import save
from serving_kit import serve, timeline, workload

from pikv_runtime.contract import Control
from pikv_runtime.controllers import make_policy
from pikv_runtime.ledger import Status
from pikv_runtime.policy import (
    DecisionLog,
    Guard,
    GuardLimits,
    Logged,
    PolicyNetwork,
    Shadow,
    header_of,
    load_policy,
    replay,
)
from pikv_runtime.policy.decision_log import read_decisions

LIMITS = GuardLimits(timeout_us=float("inf"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "tiny-0.1"
    save(path, PolicyNetwork.random((8, 8), seed=2))
    return path


@pytest.fixture(scope="module")
def plain(bundle):
    """A run under the bundle, left alone."""
    return serve(load_policy(bundle, limits=LIMITS))


def test_a_bundle_swapped_for_itself_at_every_interval_changes_nothing(bundle, plain):
    def between(engine, k):
        engine.policy = load_policy(bundle, limits=LIMITS)

    engine, tokens = serve(load_policy(bundle, limits=LIMITS), between=between)
    assert tokens == plain[1] and timeline(engine) == timeline(plain[0])


def test_a_swap_from_another_thread_comes_into_force_before_the_next_decision(bundle, plain):
    """Loading and compiling go on beside serving; which interval gets the new one is up to the threads."""
    seen = set()

    def between(engine, k):
        if k == 2:
            loader = threading.Thread(target=lambda: engine.swap(load_policy(bundle, limits=LIMITS)))
            loader.start()
            loader.join()
        seen.add(id(engine.policy))

    engine, tokens = serve(load_policy(bundle, limits=LIMITS), between=between)
    assert len(seen) == 2 and tokens == plain[1] and timeline(engine) == timeline(plain[0])


def test_a_swap_for_another_policy_drops_no_request_and_decides_at_once(bundle):
    def between(engine, k):
        if k == 4:
            assert engine.ledger.running_count[0] > 0, "under load"
            engine.swap(make_policy("static:ratio=3/h2o+s3fifo"))

    engine, tokens = serve(load_policy(bundle, limits=LIMITS), between=between)
    count = len(workload().requests)
    assert (engine.ledger.req_status[0, :count] == Status.DONE).all()
    assert [len(t) for t in tokens] == [r.output_tokens for r in workload().requests]
    groups = Control.zeros(engine.ledger.control_groups.shape[1]).groups
    asked = [np.frombuffer(c, np.float32)[: groups.size].reshape(groups.shape)[:, 1] for c in engine.control_log]
    assert all((ratio == 3).all() for ratio in asked[4:]) and not any((ratio == 3).all() for ratio in asked[:4])
    assert engine.orders.block.kind == "s3fifo"


def test_a_shadow_leaves_every_token_and_the_timeline_alone(bundle):
    alone, tokens = serve(make_policy("lazy/h2o"))
    shadow = Shadow(make_policy("lazy/h2o"), load_policy(bundle, limits=LIMITS))
    watched, same = serve(shadow)
    assert same == tokens and timeline(watched) == timeline(alone)
    report = shadow.report()
    assert report["decisions"] == watched.timers.decisions == report["different"]
    assert report["applied"] == "lazy/h2o" and report["candidate"] == "tiny-0.1"


@pytest.mark.parametrize("spec", ["bundle", "pressure_proportional/h2o"])
def test_a_live_log_is_what_came_into_force_and_replays_to_the_bit(bundle, tmp_path, spec):
    spec = str(bundle) if spec == "bundle" else spec
    policy = load_policy(spec, limits=LIMITS)
    log = DecisionLog(tmp_path / "log.jsonl", header_of(policy, spec))
    engine, _ = serve(Logged(policy, log))
    log.close()
    kept = list(read_decisions(tmp_path / "log.jsonl"))
    assert [d.control.groups.tobytes() + d.control.globals.tobytes() for d in kept] == engine.control_log
    found = replay(tmp_path / "log.jsonl")
    assert found["identical"] == found["decisions"] == engine.timers.decisions


def test_a_guard_that_is_swapped_out_takes_its_state_with_it(bundle):
    guards = [Guard(load_policy(bundle, guard=False), make_policy("lazy/h2o"), LIMITS) for _ in range(2)]
    engine, _ = serve(guards[0], between=lambda engine, k: engine.swap(guards[1]) if k == 4 else None)
    assert guards[0].counters["decisions"] == 4
    assert guards[1].counters["decisions"] == engine.timers.decisions - 4


def test_timelines_tell_policies_apart(plain):
    """Otherwise equal ones would say nothing: clock, losses and byte-seconds follow the controls."""
    other, _ = serve(make_policy("capped_exact/lru"))
    assert timeline(other)[2] != timeline(plain[0])[2]
