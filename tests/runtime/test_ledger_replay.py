"""Whole episodes: the same seed gives the same tallies on any lane, with and without numba; charges add up."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ledger_lab import (
    BLOCK_BYTES,
    bank,
    iterate,
    load,
    make,
    put,
    random_control,
    request,
    steer,
    workload,
)

from pikv_runtime import ledger as lg
from pikv_runtime.contract import GLOBAL_FEATURES, GROUP_FEATURES
from pikv_runtime.ledger import Status, Tally
from pikv_runtime.ledger.drive import Bank, SaturatedError, reference_run, replay_signals, run_interval, stage
from pikv_runtime.ledger.jit import HAVE_NUMBA
from pikv_runtime.requests import BATCH, INTERACTIVE

PAGES = 24
BANK = bank(pages=PAGES)
TELEMETRY = ((8, len(GROUP_FEATURES)), (len(GLOBAL_FEATURES),))


def build(ranks=1, lanes=1):
    return make(ranks=ranks, lanes=lanes, pages=PAGES, slots=4, blocks=110, requests=24, interval_s=0.3)


def episode(s, seed, lane=0, check=False, limit_s=1e9):
    """Play one episode under random controls. Returns what it came to, telemetry included."""
    rng = np.random.default_rng(seed)
    load(s, workload(rng, count=24, pages=PAGES, gap_s=0.15), lane, audit=0.5)
    s.interval_end_s[lane] = s.interval_s[lane]
    s.cap_bytes[lane] = int(rng.integers(25, 70)) * BLOCK_BYTES // s.ranks + BLOCK_BYTES * 12
    groups, totals, seen, done = np.zeros(TELEMETRY[0], np.float32), np.zeros(TELEMETRY[1], np.float32), [], False
    while not done:
        control = random_control(rng)
        stage(s, lane, control.groups, control.globals)
        done = bool(run_interval(s, lane, BANK, limit_s))
        if check:
            lg.check_integrity(s, lane)
        lg.write_telemetry(s, lane, groups, totals)
        seen.append(np.concatenate([groups.ravel(), totals]))
    requests = [getattr(s, f"req_{name}")[lane] for name in ("status", "generated", "first_s", "finish_s", "loss")]
    return {"tally": np.array(s.tally[lane]), "requests": np.array(requests), "telemetry": np.array(seen)}


def digest(outcome):
    exact = outcome["tally"].tobytes() + outcome["requests"].astype(np.float64).tobytes()
    return {
        "exact": hashlib.sha256(exact).hexdigest(),
        "tally": outcome["tally"].tolist(),
        "telemetry": outcome["telemetry"].astype(float).sum(0).round(3).tolist(),
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_one_seed_gives_one_outcome_bit_for_bit_on_any_lane(ranks):
    s = build(ranks, lanes=3)
    first = episode(s, 1)
    assert first["tally"][Tally.EVICTED_PAGES] > 0 and first["tally"][Tally.EVICTED_BLOCKS] > 0
    episode(s, 2, lane=1)  # a dirty lane beside it
    for lane in (0, 1, 2):
        again = episode(s, 1, lane)
        for name, values in first.items():
            np.testing.assert_array_equal(values, again[name])
    other = episode(s, 3)
    assert not np.array_equal(first["tally"], other["tally"])


@pytest.mark.skipif(not HAVE_NUMBA, reason="compares with compiled functions")
def test_plain_python_gives_the_same_answers():
    command = "import sys; sys.modules['numba'] = None; import test_ledger_replay as t; t.print_digests()"
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    plain = json.loads(done.stdout)
    assert plain.pop("numba") is False
    for ranks, told in plain.items():
        compiled = digest(episode(build(int(ranks)), 1))
        np.testing.assert_allclose(told["tally"], compiled["tally"], rtol=1e-12)
        assert told["exact"] == compiled["exact"]
        np.testing.assert_allclose(told["telemetry"], compiled["telemetry"], rtol=1e-4, atol=1e-3)


def print_digests():
    told = {str(ranks): digest(episode(build(ranks), 1)) for ranks in (1, 2)}
    print(json.dumps({"numba": HAVE_NUMBA, **told}))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_integrity_after_every_iteration_under_random_controls(ranks):
    whole_run(build(ranks), seed=0, count=9)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_integrity_over_many_seeds(ranks):
    s = build(ranks)
    for seed in range(100, 110):
        whole_run(s, seed)


def whole_run(s, seed, count=24):
    """An episode with a recount of everything after every iteration and every control, and of bytes over time."""
    rng = np.random.default_rng(seed)
    load(s, workload(rng, count=count, pages=PAGES, gap_s=0.15), audit=0.5)
    s.cap_bytes[0] = int(rng.integers(25, 40)) * BLOCK_BYTES
    byte_seconds, steps = 0.0, 0
    while s.unfinished[0] > 0:
        if steps % 7 == 0:
            put(s, random_control(rng))
            lg.check_integrity(s, 0)
        steps += 1
        planned = lg.plan(s, 0)
        if planned:
            replay_signals(s, 0, BANK)
            lg.check_integrity(s, 0)
        seconds = float(lg.price(s, 0)) if planned else 0.05
        byte_seconds += float(s.bytes_rank[0].sum()) * seconds
        lg.commit(s, 0, seconds) if planned else lg.advance(s, 0, seconds)
        lg.check_integrity(s, 0)
        assert steps < 20_000, "somebody starves"
    assert s.tally[0, Tally.BYTE_SECONDS] == pytest.approx(byte_seconds, rel=1e-9)
    parts = [Tally.WEIGHTS_S, Tally.PREFILL_S, Tally.ATTENTION_S, Tally.CODEC_S, Tally.LINK_S, Tally.DECISION_S]
    left = float(s.pending_s[0])
    assert s.tally[0, parts].sum() - left == pytest.approx(s.tally[0, Tally.BUSY_S], rel=1e-9), "time parts add up"
    served = s.req_status[0, :count] == Status.DONE
    assert (s.req_generated[0, :count][served] == s.req_output[0, :count][served]).all()


@pytest.mark.parametrize("limit_s", [0.9, 2.5, 1e9], ids=["early", "midway", "served"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_after_closing_the_charge_is_that_of_the_requests(ranks, limit_s):
    s = build(ranks)
    episode(s, 5, limit_s=limit_s)
    u_charge = np.linspace(1, 2, 24)
    due = lg.observations(s, 0)
    loss_before = s.tally[0, Tally.LOSS]
    lg.close(s, 0, u_charge, due)
    expected, lost = 0.0, 0.0
    for q in range(24):
        service = (INTERACTIVE, BATCH)[s.req_class[0, q]]
        status, first, end = s.req_status[0, q], s.req_first_s[0, q], s.clock_s[0]
        stop = s.req_finish_s[0, q] if status == Status.DONE else end
        ttft = max(0.0, (first if first >= 0 else stop) - s.req_arrival_s[0, q])
        tpot = (stop - first) / max(1, s.req_output[0, q] - 1) if first >= 0 else 0.0
        expected += service.weight * (ttft / service.slo_ttft_s + tpot / service.slo_tpot_s)
        if status != Status.DONE:
            expected += u_charge[q]
            if s.req_audited[0, q]:
                lost += service.fidelity_weight * (due[q] - s.req_observed[0, q]) * s.layers
    assert s.tally[0, Tally.LATENCY_CHARGE] == pytest.approx(expected, rel=1e-9)
    assert s.tally[0, Tally.LOSS] - loss_before == pytest.approx(lost, abs=1e-9)
    unserved = (s.req_status[0, :24] != Status.DONE).sum()
    assert unserved == 0 if limit_s > 100 else unserved > 0


def test_who_arrived_during_the_last_iteration_is_charged_for_it():
    s = load(build(), [request(0, 30, 5, pages=PAGES), request(1, 30, 5, arrival=0.001, pages=PAGES)])
    iterate(s, signals=BANK)
    assert s.req_status[0, 1] == Status.FUTURE and s.clock_s[0] > 0.001
    before = s.tally[0, Tally.LATENCY_CHARGE]
    lg.close(s, 0, np.array([0.0, 2.0]), lg.observations(s, 0))
    waited = (s.clock_s[0] - 0.001) * INTERACTIVE.weight / INTERACTIVE.slo_ttft_s
    assert s.tally[0, Tally.LATENCY_CHARGE] - before == pytest.approx(2.0 + waited)


def test_the_reference_run_is_uncapped_and_exact_and_touches_nothing():
    s, scratch = build(), build()
    load(s, workload(np.random.default_rng(0), count=8, pages=PAGES, gap_s=3.0))
    s.cap_bytes[0] = 20 * BLOCK_BYTES
    steer(s, apply=False, ratio=3.0, evict=0.5, fan_out=0.1)
    before = {name: np.array(value) for name, value in s._asdict().items()}
    reference = reference_run(s, 0, BANK, scratch)
    for name, value in s._asdict().items():
        np.testing.assert_array_equal(value, before[name])
    assert scratch.tally[0, [Tally.EVICTED_PAGES, Tally.EVICTED_BLOCKS, Tally.PREEMPTIONS]].sum() == 0
    assert reference.latency == pytest.approx(scratch.tally[0, Tally.LATENCY_CHARGE], rel=1e-9)
    assert reference.live_bytes_peak >= reference.live_bytes_mean > 0
    assert (scratch.req_status[0, :8] == Status.DONE).all()


def test_a_saturated_reference_is_refused():
    s, scratch = build(), build()
    load(s, [request(q, 40, 20, pages=PAGES) for q in range(8)])
    with pytest.raises(SaturatedError, match="busy"):
        reference_run(s, 0, BANK, scratch)
    assert reference_run(s, 0, BANK, scratch, most_busy=1.0).busy_share > 0.85


def test_nothing_recorded_is_nothing_observed():
    s = load(build(), [request(0, 30, 12, content=-1, pages=PAGES), request(1, 30, 12, content=99, pages=PAGES)])
    empty = Bank.empty(2, PAGES)
    while s.unfinished[0] > 0:
        iterate(s, signals=empty)
    assert s.req_observed[0].sum() == 0 and s.tally[0, Tally.LOSS] == 0
    assert (s.block_tag[0][s.block_cached[0] == 1] == -1).all()
