"""The reward: its sum is -J, its parts are what they say, and telemetry tells no more than it may."""

from __future__ import annotations

import numpy as np
import pytest
from trace_kit import make_batch, neutral_controls, play, random_controls, write_profile

from pikv_env.batch import TraceBatch
from pikv_env.workloads import FAMILIES
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import GlobalControl, GlobalFeature, GroupControl
from pikv_runtime.ledger import (
    Price,
    Shape,
    Status,
    Tally,
    advance,
    build,
    commit,
    due,
    load_requests,
    plan,
    price,
)
from pikv_runtime.ledger.drive import Bank, next_event_s, reference_run, replay_signals, run_interval
from pikv_runtime.ledger.observe import read_masks
from pikv_runtime.ledger.telemetry import write_telemetry
from pikv_runtime.objective import charges, denominators, score, weigh
from pikv_runtime.requests import BATCH, INTERACTIVE, Request

ALL = tuple(FAMILIES)
PRESSURES = (0.7, 6.0)
LOSS_COLUMNS = [GlobalFeature.LOSS_CLASS0, GlobalFeature.LOSS_CLASS1]
OTHER_COLUMNS = [c for c in GlobalFeature if c not in LOSS_COLUMNS]
RUNTIME = {"codec": "bf16", "read": "sparse", "router": "centroid", "slots": 16, "blocks": 4096}


def every_family(ranks: int) -> TraceBatch:
    """One lane for every family and pressure."""
    lanes = len(ALL) * len(PRESSURES)
    batch = make_batch(lanes, families=ALL, workloads=len(ALL), ranks=ranks, drain=0.03)
    for i in range(lanes):
        batch.reset_lane(i, workload=i % len(ALL), pressure=PRESSURES[i // len(ALL)])
    return batch


def request_charge(batch: TraceBatch, i: int) -> float:
    """Σ c_i (TTFT/SLO + TPOT/SLO) of lane `i`, request by request, in plain Python."""
    s, reference = batch.state, batch.prepared(i).reference
    total, end_s = 0.0, s.clock_s[i]
    for q, request in enumerate(batch.prepared(i).workload.requests):
        service = batch.prepared(i).workload.classes[request.class_id]
        status, first_s = s.req_status[i, q], s.req_first_s[i, q]
        stop_s = s.req_finish_s[i, q] if status == Status.DONE else end_s
        started = first_s >= 0
        ttft_s = (first_s if started else stop_s) - request.arrival_s
        tpot_s = (stop_s - first_s) / max(1, request.output_tokens - 1) if started else 0.0
        total += service.weight * (ttft_s / service.slo_ttft_s + tpot_s / service.slo_tpot_s)
        if status != Status.DONE:
            total += reference.charges[q]
    return total


@pytest.mark.parametrize("ranks", [1, 2])
def test_rewards_sum_to_minus_j_and_latency_to_the_requests(ranks: int) -> None:
    batch = every_family(ranks)
    total = play(batch, np.random.default_rng(ranks))
    unfinished = 0
    for i in range(batch.num_envs):
        final = batch.score(i)
        assert total[i] == pytest.approx(-final.J, rel=1e-9)
        reference = batch.prepared(i).reference
        assert final.latency == pytest.approx(request_charge(batch, i) / reference.latency, rel=1e-6)
        held = batch.state.tally[i, Tally.BYTE_SECONDS] / (batch.cap_total(i) * reference.duration_s)
        assert final.memory == held
        unfinished += int(batch.state.unfinished[i])
    assert unfinished > 0, "some lane must run into its drain limit, or its charge is not tested"


def test_a_lane_that_is_over_costs_nothing_more() -> None:
    batch = make_batch(2)
    batch.reset_lane(0, workload=0)
    batch.reset_lane(1, workload=1)
    play(batch)
    tally = batch.state.tally.copy()
    neutral_controls(batch)
    assert not batch.step().any()
    np.testing.assert_array_equal(tally, batch.state.tally)


def test_unserved_requests_lose_all_their_audited_tokens() -> None:
    batch = make_batch(1, drain=0.0, load=0.6, runtime=RuntimeConfig(**RUNTIME, audit_share=1.0))
    batch.reset_lane(0, workload=0, pressure=50.0)
    play(batch)
    s, n = batch.state, batch.state.num_requests[0]
    starved = np.flatnonzero((s.req_status[0, :n] != Status.DONE) & (s.req_generated[0, :n] == 0))
    assert len(starved)
    np.testing.assert_array_equal(s.req_loss[0, starved], batch.prepared(0).observations[starved] * s.layers)


def test_neutral_and_uncapped_is_the_reference(tmp_path) -> None:
    free = write_profile(tmp_path, select_page=0.0, decision=0.0)
    batch = make_batch(4, workloads=4, profile=free, pressure=1e-9)
    for i in range(4):
        batch.reset_lane(i, workload=i)
    play(batch)
    for i in range(4):
        final = batch.score(i)
        # A decision may seal a page an iteration earlier than U does; nothing else differs.
        assert final.latency == pytest.approx(1.0, rel=1e-4)
        assert final.memory < 1e-6
        assert final.loss < 0.01


def test_neutral_and_uncapped_costs_little_more_than_the_reference() -> None:
    batch = make_batch(1, pressure=1e-9)
    batch.reset_lane(0)
    play(batch)
    latency = batch.score(0).latency
    assert latency >= 1.0
    assert latency < 1.05


def one_request():
    """A ledger with round prices: 10 ms a step, 1 ms a prompt token, 2 ms a decoding request."""
    config = RuntimeConfig(layer_groups=2)
    shape = Shape(layers=2, experts=2, codec_bytes=(100, 50, 25, 13), centroid_bytes=8)
    asked = [Request(0, 1.0, 40, 3, np.arange(1, 3), class_id=0)]
    ledgers = [build(config, shape, (INTERACTIVE, BATCH), requests=1, pages=3) for _ in range(2)]
    s = ledgers[0]
    s.prices[0, [Price.STEP, Price.PREFILL_TOKEN, Price.DECODE_TOKEN]] = 0.010, 0.001, 0.002
    s.cap_bytes[0] = 1000
    load_requests(s, 0, asked, audit_seed=0, audit_share=0.0)
    return s, ledgers[1]


def test_one_request_by_hand() -> None:
    s, scratch = one_request()
    bank = Bank.empty(2, 3)
    reference = reference_run(s, 0, bank, scratch)
    while not run_interval(s, 0, bank, 100.0):
        pass
    first_s, finish_s = 1.0 + 0.010 + 40 * 0.001, 1.05 + 2 * 0.012
    assert s.req_first_s[0, 0] == pytest.approx(first_s)
    assert s.req_finish_s[0, 0] == pytest.approx(finish_s)
    latency = (first_s - 1.0) / 2.0 + 0.012 / 0.10
    assert s.tally[0, Tally.LATENCY_CHARGE] == pytest.approx(latency)
    byte_seconds = 3 * 2 * 100 * (finish_s - 1.0)  # three pages, two layers, 100 bytes
    assert s.tally[0, Tally.BYTE_SECONDS] == pytest.approx(byte_seconds)
    assert reference.duration_s == pytest.approx(finish_s)
    assert reference.latency == pytest.approx(latency)
    final = score(s.tally[0], reference, 1000.0, 0.25, 10.0)
    assert final.loss == 0.0
    assert pytest.approx(1.0 + 0.25 * byte_seconds / (1000.0 * finish_s)) == final.J


def test_one_formula_for_lanes_and_for_one() -> None:
    batch = make_batch(3)
    for i in range(3):
        batch.reset_lane(i)
    rng = np.random.default_rng(0)
    for _ in range(6):
        random_controls(batch, rng)
        batch.step()
    together = weigh(charges(batch.state.tally, batch.scale), batch.state.lambdas)
    np.testing.assert_array_equal(together, [one.J for one in batch.scores()])
    nothing = denominators(batch.prepared(0).reference, 1.0)[2]
    assert nothing > 0


def test_audits_are_not_told() -> None:
    told = []
    for share in (0.25, 1.0):
        batch = make_batch(1, runtime=RuntimeConfig(**RUNTIME, audit_share=share))
        batch.reset_lane(0, workload=1, pressure=3.0)
        rng, rows = np.random.default_rng(5), []
        while not batch.done[0]:
            random_controls(batch, rng)
            batch.step()
            rows.append(
                (
                    batch.groups.copy(),
                    batch.globals[:, OTHER_COLUMNS].copy(),
                    batch.globals[:, LOSS_COLUMNS].copy(),
                )
            )
        told.append([np.concatenate(part) for part in zip(*rows, strict=True)])
    np.testing.assert_array_equal(told[0][0], told[1][0])
    np.testing.assert_array_equal(told[0][1], told[1][1])
    assert not np.array_equal(told[0][2], told[1][2])


def disturb(s, bank: Bank, rng: np.random.Generator) -> tuple[Bank, int]:
    """The bank with other masses on every page that no due observation reads; and how many that were."""
    mass, touched = bank.mass.copy(), 0
    unread: dict[tuple[int, int], np.ndarray] = {}
    for r in range(s.slot_request.shape[1]):
        q = s.slot_request[0, r]
        if q < 0 or due(s, 0, r) < 0:
            continue
        c, o = int(s.req_content[0, q]), min(due(s, 0, r), mass.shape[1] - 1)
        read = np.stack([read_masks(s, 0, r, layer, bank.score[c, o, layer])[0] for layer in range(s.layers)])
        unread[c, o] = unread.get((c, o), True) & (read == 0)
    for at, where in unread.items():
        touched += int((mass[at][where] > 0).sum())
        mass[at][where] = rng.random(int(where.sum()))
    return bank._replace(mass=mass), touched


def drive(batch: TraceBatch, rng: np.random.Generator | None) -> int:
    """One interval as `run_interval` does it; with `rng`, unread masses are disturbed."""
    s, touched = batch.state, 0
    while s.clock_s[0] < s.interval_end_s[0]:
        if plan(s, 0) == 0:
            advance(s, 0, max(1e-9, next_event_s(s, 0, s.interval_end_s[0]) - s.clock_s[0]))
            continue
        bank, count = disturb(s, batch.bank, rng) if rng is not None else (batch.bank, 0)
        touched += count
        replay_signals(s, 0, bank)
        commit(s, 0, price(s, 0))
    write_telemetry(s, 0, batch.groups[0], batch.globals[0])
    return touched


def test_masses_of_unread_pages_are_not_told() -> None:
    batch = make_batch(1, horizon_s=60.0, runtime=RuntimeConfig(**RUNTIME, audit_share=1.0))
    batch.reset_lane(0, workload=0, pressure=3.0)
    rng, touched = np.random.default_rng(2), 0
    for _ in range(8):
        random_controls(batch, rng)
        batch.control_globals[:, GlobalControl.FAN_OUT] = 0.3
        batch.control_groups[..., GroupControl.EVICT_FRACTION] *= 0.2
        batch.step()
        before = batch.get_state(0)
        drive(batch, None)
        plain = batch.groups.copy(), batch.globals.copy()
        batch.set_state(0, before)
        touched += drive(batch, rng)
        np.testing.assert_array_equal(plain[0], batch.groups)
        np.testing.assert_array_equal(plain[1][:, OTHER_COLUMNS], batch.globals[:, OTHER_COLUMNS])
        batch.set_state(0, before)
    assert touched > 1000
