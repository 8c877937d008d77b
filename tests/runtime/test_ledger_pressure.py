"""Over the cap: cached blocks first, then the ladder if it is allowed, then admission stops, then the latest goes."""

from __future__ import annotations

import numpy as np
import pytest
from ledger_lab import (
    BLOCK_BYTES,
    PAGE_BYTES,
    TOKENS,
    bank,
    blocks_of,
    bytes_by_group,
    codecs_of,
    decodes,
    drain,
    iterate,
    iterate_until,
    load,
    make,
    request,
    slot_of,
    steer,
    workload,
)

from pikv_runtime import ledger as lg
from pikv_runtime.contract import GlobalControl
from pikv_runtime.ledger import Status, Tally
from pikv_runtime.ledger.drive import replay_signals
from pikv_runtime.ledger.pressure import make_room

BANK, BANK_WIDE = bank(), bank(pages=40)
TOP = lg.CODECS.index("bf16")
DEMOTE = {"r_pressure": 4.0}


@pytest.fixture(scope="module")
def small():
    return make(slots=3, blocks=40, requests=16)


@pytest.fixture(scope="module")
def wide():
    return make(slots=2, pages=40, blocks=90, requests=4, max_batch_tokens=160)


def live_codecs(s):
    """Codecs (L,) of every block that a running request lists."""
    return {int(b): s.block_codec[0, b].copy() for b in np.unique(s.page_block[0][s.page_block[0] >= 0])}


def test_live_pages_are_demoted_only_when_no_cached_block_is_left(small):
    demotions = 0
    for seed in range(12):
        s = load(small, workload(np.random.default_rng(seed), count=16))
        s.cap_bytes[0] = 9 * BLOCK_BYTES
        steer(s, **DEMOTE)
        while s.unfinished[0] > 0:
            before, cached = live_codecs(s), s.block_cached[0] == 1
            if lg.plan(s, 0) == 0:
                lg.advance(s, 0, 0.05)
                continue
            after = live_codecs(s)
            if any(((after[b] > before[b]) & (after[b] > TOP)).any() for b in after.keys() & before.keys()):
                demotions += 1
                # Whoever is preempted afterwards leaves cached blocks; whoever is not admitted gives his hits back.
                hits = np.isin(s.block_hash[0], s.req_hashes[0, s.req_status[0] == Status.WAITING])
                kept = cached & (s.block_cached[0] == 1) & ~hits
                assert not kept.any(), "a live page was demoted beside a cached block"
            replay_signals(s, 0, BANK)
            lg.commit(s, 0, lg.price(s, 0))
    assert demotions > 0, "nothing was demoted: the test shows nothing"


def test_nothing_lossy_happens_unless_the_control_asks(small):
    preempted = 0
    for seed in range(8):
        s = load(small, workload(np.random.default_rng(seed), count=16))
        s.cap_bytes[0] = 9 * BLOCK_BYTES
        steer(s, r_pressure=1.0)
        while s.unfinished[0] > 0:
            iterate(s, signals=BANK)
            assert s.block_codec.max() <= TOP and not s.page_ghost.any()
        preempted += s.tally[0, Tally.PREEMPTIONS]
        assert s.tally[0, Tally.EVICTED_PAGES] == 0
    assert preempted > 0, "there was no pressure: the test shows nothing"


@pytest.mark.parametrize("ratio", [1.5, 2.5])
def test_pressure_demotes_no_further_than_allowed_and_lowest_utility_first(wide, ratio):
    s = load(wide, [request(0, 130, 20, pages=40)])
    s.cap_bytes[0] = 39 * BLOCK_BYTES
    iterate_until(s, lambda: decodes(s, 0), signals=BANK_WIDE)
    steer(s, r_pressure=ratio, page_recency=0.0, page_position=1.0)
    assert not make_room(s, 0, 0, 10**9), "so much room cannot be made"
    stored, dense = (part.sum() for part in bytes_by_group(s, 0))
    gain = PAGE_BYTES[1] - PAGE_BYTES[2]
    assert dense / ratio - gain <= stored <= dense / ratio
    codecs = codecs_of(s, 0)[1:-2]
    assert (np.diff(codecs.max(1)) <= 0).all(), "the earliest pages have the lowest utility here"


def test_a_request_that_is_being_admitted_is_not_demoted_to_make_room_for_itself(wide):
    chain = 7000 + np.arange(20)
    first, second = request(0, 81, 1, chain, pages=40), request(1, 100, 1, chain, arrival=50.0, pages=40)
    s = load(wide, [first, second])
    s.cap_bytes[0] = 60 * BLOCK_BYTES
    iterate_until(s, lambda: s.req_status[0, 0] == Status.DONE, signals=BANK_WIDE)
    # Besides the chain there is room for four blocks of the five that are missing, unless the chain is demoted.
    ballast = int(s.cap_bytes[0] - s.bytes_rank[0, 0]) - 4 * BLOCK_BYTES
    s.bytes_rank[0, 0] += ballast
    s.clock_s[0] = 51.0
    steer(s, apply=False, **DEMOTE)
    lg.plan(s, 0)
    s.bytes_rank[0, 0] -= ballast
    assert s.req_status[0, 1] == Status.WAITING and s.cached_count[0] == 20
    assert s.block_codec[0].max() <= TOP, "the hits of a prompt are pinned while it is prefilled"
    lg.check_integrity(s, 0)


def test_admission_stops_before_anybody_is_preempted(small):
    s = load(small, [request(0, 12, 8), request(1, 12, 8), request(2, 12, 4)])
    s.cap_bytes[0] = 10 * BLOCK_BYTES
    iterate_until(s, lambda: decodes(s, 1))
    # 3 + 3 blocks run; the third needs 3 more, and one spare for each that runs.
    assert s.req_status[0, :3].tolist() == [Status.RUNNING, Status.RUNNING, Status.WAITING]
    iterate_until(s, lambda: s.req_status[0, 2] == Status.RUNNING)
    assert s.req_status[0, 0] == Status.DONE
    drain(s)
    assert s.tally[0, Tally.PREEMPTIONS] == 0


def test_the_latest_arrival_is_preempted_and_recomputed_later(small):
    s = load(small, [request(0, 8, 16), request(1, 8, 16), request(2, 8, 16)])
    s.cap_bytes[0] = 10 * BLOCK_BYTES
    order = []
    while s.unfinished[0] > 0:
        before = s.req_preempted[0, :3].copy()
        running = np.flatnonzero(s.req_status[0, :3] == Status.RUNNING)
        iterate(s)
        for q in np.flatnonzero(s.req_preempted[0, :3] > before):
            assert q == running.max(), "an earlier arrival was preempted"
            order.append(int(q))
    assert order and 0 not in order
    assert (s.req_status[0, :3] == Status.DONE).all()
    assert (s.req_generated[0, :3] == 16).all()
    assert np.diff(s.req_finish_s[0, :3]).min() > 0


def test_recomputing_after_preemption_charges_no_second_first_token(small):
    s = load(small, [request(0, 8, 16), request(1, 8, 16), request(2, 8, 16)])
    s.cap_bytes[0] = 10 * BLOCK_BYTES
    iterate_until(s, lambda: s.req_preempted[0].any())
    q = int(np.argmax(s.req_preempted[0]))
    first = float(s.req_first_s[0, q])
    assert first > 0
    drain(s)
    assert s.req_first_s[0, q] == first
    assert s.waiting_rate[0] == pytest.approx(0, abs=1e-12) and s.decode_rate[0] == pytest.approx(0, abs=1e-12)


def test_hits_on_its_own_blocks_after_preemption_are_no_reuse(small):
    s = load(small, [request(0, 8, 16), request(1, 8, 16), request(2, 8, 16)])
    s.cap_bytes[0] = 10 * BLOCK_BYTES
    drain(s)
    assert s.tally[0, Tally.PREEMPTIONS] > 0
    assert s.tally[0, Tally.HIT_TOKENS] == 0 and s.tally[0, Tally.PROMPT_TOKENS] == 24


@pytest.mark.parametrize(("prompt", "output", "refused"), [(20, 4, False), (20, 5, True), (25, 1, True)])
def test_what_cannot_fit_is_refused_at_submission(small, prompt, output, refused):
    s = load(small, [request(0, prompt, output), request(1, 4, 1)])
    s.cap_bytes[0] = 6 * BLOCK_BYTES  # 24 tokens
    lg.plan(s, 0)
    assert s.req_status[0, 0] == (Status.REFUSED if refused else Status.RUNNING)
    drain(s)
    assert s.req_status[0, 1] == Status.DONE
    assert s.unfinished[0] == 0


def test_more_pages_than_a_slot_has_are_refused(small):
    s = load(small, [request(0, 8 * TOKENS, 1)])
    s.cap_bytes[0] = lg.NO_CAP
    lg.plan(s, 0)
    assert s.req_status[0, 0] == Status.REFUSED


def test_sealed_pages_go_home_over_cached_blocks_and_spill_only_over_live_ones():
    s = load(make(ranks=2, slots=2, blocks=40, requests=4, pages=16), [request(0, 24, 40, pages=16)])
    tags = np.full((6, 2, 16), 3, np.int8)  # everything is at home on rank 1
    signals = bank(pages=16)._replace(tags=tags)
    s.cap_bytes[0] = 20 * BLOCK_BYTES
    iterate_until(s, lambda: decodes(s, 0), signals=signals)
    owner = int(s.slot_owner[0, slot_of(s, 0)])
    assert owner == 0
    blocks = blocks_of(s, 0)
    assert (s.block_rank[0, blocks[1:-2]] == 1).all() and (s.block_rank[0, blocks[[0, -1]]] == 0).all()
    assert s.tally[0, Tally.LINK_BYTES] >= s.bytes_rank[0, 1]
    s.cap_bytes[0] = int(s.bytes_rank[0].max()) + 3 * BLOCK_BYTES
    # Fill rank 1 with somebody else's bytes: live ones stay where they are, and the pages stay with their owner.
    spare = int(s.cap_bytes[0] - s.bytes_rank[0, 1])
    s.bytes_rank[0, 1] += spare
    for _ in range(8):
        lg.plan(s, 0)
        lg.commit(s, 0, lg.price(s, 0))
    s.bytes_rank[0, 1] -= spare
    assert s.tally[0, Tally.SPILLS] > 0
    lg.check_integrity(s, 0)


def test_growing_pages_find_room_over_cached_blocks_on_their_own_rank(small):
    s = load(small, [request(0, 16, 1), request(1, 16, 12, arrival=1.0)])
    s.cap_bytes[0] = 7 * BLOCK_BYTES
    iterate_until(s, lambda: s.req_status[0, 0] == Status.DONE)
    assert s.cached_count[0] == 4
    drain(s)
    assert s.tally[0, Tally.EVICTED_BLOCKS] > 0 and s.tally[0, Tally.PREEMPTIONS] == 0
    assert s.control_globals[0, GlobalControl.R_PRESSURE] == 1
