"""The host tier: what leaves the device can be found in host memory, and comes back as it was."""

from __future__ import annotations

import numpy as np
import pytest
from ledger_lab import (
    BLOCK_BYTES,
    GROUPS,
    LAYERS,
    PAGE_BYTES,
    TOKENS,
    bank,
    blocks_of,
    drain,
    iterate,
    iterate_until,
    load,
    make,
    random_control,
    request,
    slot_of,
    steer,
    workload,
)

from pikv_runtime import ledger as lg
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import GLOBAL_FEATURES, GROUP_FEATURES, GlobalFeature
from pikv_runtime.ledger import Tally
from pikv_runtime.ledger.blocks import drop_block, lookup
from pikv_runtime.ledger.drive import run_interval, stage
from pikv_runtime.ledger.host import to_host
from pikv_runtime.ledger.index import find
from pikv_runtime.ledger.pages import place
from pikv_runtime.ledger.state import IN_HOST, ON_DEVICE, Price
from pikv_runtime.ledger.victims import evict_cached, free_slot

CHAIN = 500 + np.arange(8, dtype=np.int64)
BANK = bank(pages=16)
SEALED = LAYERS * PAGE_BYTES[1]  # a cached block at the top rung
ROOM = 10**9


@pytest.fixture(scope="module")
def ledger():
    return make(pages=16, slots=3, blocks=60, requests=40, host_bytes=ROOM)


def twin(number, prompt, output=1, hashes=CHAIN, arrival=0.0):
    return request(number, prompt, output, hashes, arrival, pages=16)


def serve(s, *requests, host=ROOM, **control):
    """Load, serve everybody but requests that arrive at 100 s, and let those arrive."""
    load(s, requests)
    s.host_cap[0], s.cap_bytes[0] = host, lg.NO_CAP
    steer(s, **control)
    late = sum(r.arrival_s >= 100 for r in requests)
    iterate_until(s, lambda: s.unfinished[0] == late, signals=BANK)
    s.clock_s[0] = 100.0
    return s


def evict_all(s):
    while evict_cached(s, 0):
        lg.check_integrity(s, 0)


def facts(s, q):
    """What the ledger says of the pages that request `q` lists."""
    blocks = blocks_of(s, q)
    names = ("hash", "depth", "full", "exact", "sealed", "codec", "rank", "tag", "error")
    return [getattr(s, f"block_{name}")[0, blocks].tolist() for name in names]


def test_a_hit_in_the_host_saves_what_a_hit_on_the_device_saves(ledger):
    found = {}
    for hosted in (False, True):
        s = serve(ledger, twin(0, 33), twin(1, 33, 2, arrival=100.0))
        if hosted:
            evict_all(s)
            assert s.cached_count[0] == s.bytes_rank[0].sum() == 0 and s.host_bytes[0].sum() == 8 * SEALED
            assert lookup(s, 0, 1) == 8
        computed = iterate(s, signals=BANK)
        found[hosted] = (computed, s.req_hit_tokens[0, 1], int(s.tally[0, Tally.HIT_TOKENS]), facts(s, 1))
        assert s.tally[0, Tally.HOST_HIT_TOKENS] == (8 * TOKENS if hosted else 0)
        assert s.host_bytes[0].sum() == 0 and s.slot_lossy[0, slot_of(s, 1)] == 0
    assert found[True] == found[False] and found[True][:2] == (1, 32)


def test_a_demoted_block_comes_back_as_it_left(ledger):
    s = serve(ledger, twin(0, 33), twin(1, 33, 2, arrival=100.0))
    steer(s, cached_ratio=1.9)
    before = {int(k): s.block_codec[0, find(s, 0, int(k))].tolist() for k in CHAIN}
    assert {2, 3} == {codec for codecs in before.values() for codec in codecs}
    encoded = s.tally[0, Tally.ENCODED_PAGES]
    evict_all(s)
    iterate(s, signals=BANK)
    assert [s.block_codec[0, b].tolist() for b in blocks_of(s, 1)[:8]] == list(before.values())
    assert s.tally[0, Tally.ENCODED_PAGES] == encoded
    assert s.slot_lossy[0, slot_of(s, 1)] == 1, "computed over int8 pages: no more exact than on the device"


def test_what_is_moved_is_paid(ledger):
    first = {}
    for price in (0.0, 1.0):  # a second a byte
        s = serve(ledger, twin(0, 33), twin(1, 33, 2, arrival=100.0))
        s.prices[0, Price.HOST_BYTE] = price
        evict_all(s)
        iterate(s, signals=BANK)
        assert s.tally[0, Tally.HOST_BYTES] == 2 * 8 * SEALED
        assert s.tally[0, Tally.HOST_S] == price * 2 * 8 * SEALED
        assert s.tally[0, Tally.HOST_OUT_BLOCKS] == s.tally[0, Tally.HOST_IN_BLOCKS] == 8
        first[price] = s.req_first_s[0, 1]
    assert first[1.0] - first[0.0] == pytest.approx(2 * 8 * SEALED)


def test_the_oldest_leave_first_and_of_equals_the_deepest(ledger):
    other = 700 + np.arange(8, dtype=np.int64)
    s = serve(ledger, twin(0, 17), twin(1, 17, hashes=other, arrival=1.0), host=6 * SEALED)
    evict_all(s)  # four of the older chain, then four of the younger: room for six
    kept = [[find(s, 0, int(key)) >= 0 for key in chain[:4]] for chain in (CHAIN, other)]
    assert kept == [[True, True, False, False], [True] * 4]
    assert s.host_bytes[0, 0] == 6 * SEALED


def test_an_older_block_never_drives_out_a_younger_one(ledger):
    other = 700 + np.arange(8, dtype=np.int64)
    s = serve(ledger, twin(0, 17), twin(1, 17, hashes=other, arrival=1.0), host=4 * SEALED)
    steer(s, block_recency=-1.0)  # the device gives up the youngest first
    evict_all(s)
    assert all(find(s, 0, int(key)) >= 0 for key in other[:4]) and find(s, 0, int(CHAIN[0])) < 0


def test_a_gap_ends_the_hits_and_what_is_recomputed_takes_the_place_of_the_copy(ledger):
    s = serve(ledger, twin(0, 33), twin(1, 33, 2, arrival=100.0))
    drop_block(s, 0, find(s, 0, int(CHAIN[2])))
    evict_all(s)
    assert lookup(s, 0, 1) == 2 and s.host_count[0] == 7
    iterate(s, signals=BANK)
    assert s.req_hit_tokens[0, 1] == 2 * TOKENS and s.host_count[0] == 0
    drain(s, signals=BANK)
    assert (s.block_host[0] == ON_DEVICE).all() and all(find(s, 0, int(key)) >= 0 for key in CHAIN)


def test_hits_on_both_sides_of_the_bus_survive_making_room_for_each_other(ledger):
    other = 700 + np.arange(8, dtype=np.int64)
    s = serve(ledger, twin(0, 33), twin(1, 33, hashes=other), twin(2, 33, 2, arrival=100.0))
    for key in CHAIN[::2]:  # every other block of the chain is in the host
        assert to_host(s, 0, find(s, 0, int(key)))
    s.cap_bytes[0] = 9 * BLOCK_BYTES  # all hits, a native page and not quite all of the strangers
    assert lookup(s, 0, 2) == 8
    iterate(s, signals=BANK)
    assert s.req_hit_tokens[0, 2] == 32 and s.tally[0, Tally.HOST_HIT_TOKENS] == 16
    assert s.bytes_rank[0, 0] <= s.cap_bytes[0]
    assert [int(s.block_host[0, find(s, 0, int(key))]) for key in other].count(IN_HOST) == 1


def test_who_cannot_be_brought_back_in_full_leaves_everything_where_it_was(ledger):
    s = serve(ledger, twin(0, 33), twin(1, 33, 2, arrival=100.0))
    for key in CHAIN[4:7]:
        assert to_host(s, 0, find(s, 0, int(key)))
    # Room that only demotion could make, which finds nothing to demote: the admission is tried, and fails.
    steer(s, r_pressure=4.0)
    s.cap_bytes[0] = 9 * BLOCK_BYTES
    s.bytes_rank[0, 0] += 4700  # room for one of the three
    assert iterate(s) == 0
    s.bytes_rank[0, 0] -= 4700
    assert s.running_count[0] == 0 and s.tally[0, Tally.HOST_IN_BLOCKS] == 1
    assert s.host_bytes[0].sum() + s.bytes_rank[0].sum() == 8 * SEALED
    lg.check_integrity(s, 0)
    iterate(s, signals=BANK)
    assert s.req_hit_tokens[0, 1] == 32


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_bytes_are_conserved_under_random_controls(ranks):
    pages = 24
    s = make(ranks=ranks, pages=pages, slots=4, blocks=110, requests=24, interval_s=0.3, host_bytes=ROOM)
    signals, moved = bank(pages=pages), 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        load(s, workload(rng, count=24, pages=pages, gap_s=0.15), audit=0.5)
        s.interval_end_s[0] = s.interval_s[0]
        s.cap_bytes[0] = int(rng.integers(8, 30)) * BLOCK_BYTES // ranks + BLOCK_BYTES * 24
        s.host_cap[0] = int(rng.integers(2, 40)) * SEALED
        while s.unfinished[0] > 0:
            control = random_control(rng)
            stage(s, 0, control.groups, control.globals)
            run_interval(s, 0, signals, 1e9)
            lg.check_integrity(s, 0)
        moved += s.tally[0, Tally.HOST_IN_BLOCKS]
        assert s.bytes_rank[0].sum() == s.cached_bytes[0].sum(), "bytes left behind"
    assert moved > 0


def test_a_larger_host_never_lowers_the_hits():
    rng, documents = np.random.default_rng(0), 12
    popularity = 1.0 / np.arange(1, documents + 1)
    requests = [
        request(q, 29, 2, 100 * (int(d) + 1) + np.arange(7), 1.0 * q, pages=16)
        for q, d in enumerate(rng.choice(documents, 40, p=popularity / popularity.sum()))
    ]
    s = make(pages=16, slots=3, blocks=160, requests=40, host_bytes=ROOM)
    hits = []
    for blocks in (0, 5, 10, 20, 30, 50, 80):
        load(s, requests)
        s.cap_bytes[0], s.host_cap[0] = 16 * BLOCK_BYTES, blocks * SEALED
        drain(s, signals=BANK)
        hits.append(int(s.tally[0, Tally.HIT_TOKENS]))
    assert hits == sorted(hits) and hits[-1] > hits[2] > hits[0]


def test_where_slots_run_out_the_host_gives_up_its_blocks():
    s = make(pages=16, slots=2, blocks=1, requests=40, host_bytes=ROOM)  # 33 slots
    load(s, [request(q, 61, 2, (), 10.0 * q, pages=16) for q in range(6)])
    s.cap_bytes[0] = 18 * BLOCK_BYTES
    drain(s, signals=BANK)
    assert (s.req_status[0, :6] == lg.Status.DONE).all() and s.tally[0, Tally.HOST_OUT_BLOCKS] > 0


def test_a_slot_is_taken_from_the_host_before_the_device(ledger):
    s = serve(ledger, twin(0, 33))
    assert to_host(s, 0, find(s, 0, int(CHAIN[6]))) and to_host(s, 0, find(s, 0, int(CHAIN[7])))
    for cached, hosted in ((6, 1), (6, 0), (5, 0)):
        free = int(s.free_count[0])
        assert free_slot(s, 0) and s.free_count[0] == free + 1
        assert (s.cached_count[0], s.host_count[0]) == (cached, hosted)
        lg.check_integrity(s, 0)


def test_without_a_tier_blocks_are_dropped_and_telemetry_says_so(ledger):
    told = {}
    for host in (0, 16 * SEALED):
        s = serve(ledger, twin(0, 33), host=host)
        evict_all(s)
        assert (find(s, 0, int(CHAIN[0])) >= 0) == (host > 0)
        groups, totals = np.zeros((GROUPS, len(GROUP_FEATURES)), np.float32), np.zeros(len(GLOBAL_FEATURES), np.float32)
        lg.write_telemetry(s, 0, groups, totals)
        told[host] = totals[[GlobalFeature.HOST_SHARE, GlobalFeature.HOST_HIT_RATE, GlobalFeature.PRICE_HOST]].tolist()
    page_s = s.prices[0, Price.HOST_BYTE] * PAGE_BYTES[1] / s.prices[0, Price.STEP]
    assert told[0] == [0.0, 0.0, -24.0]
    assert told[16 * SEALED] == [0.5, 0.0, pytest.approx(np.log2(page_s))]


def test_the_invariants_notice_what_is_wrong_with_the_host(ledger):
    def breaches(damage):
        s = serve(ledger, twin(0, 33))
        evict_all(s)
        damage(s)
        with pytest.raises(lg.IntegrityError):
            lg.check_integrity(s, 0)

    def resident(s):
        s.block_host[0, find(s, 0, 500)] = ON_DEVICE
        place(s, 0, find(s, 0, 500), 0, 0)

    def lost(s):
        s.host_bytes[0, 0] -= 1

    def full(s):
        s.host_cap[0] = 7 * SEALED

    def forgotten(s):
        s.host_queued[0] = 3

    for damage in (resident, lost, full, forgotten):
        breaches(damage)


def test_a_negative_host_is_refused():
    with pytest.raises(ValueError, match="host_bytes=-1: must not be negative"):
        RuntimeConfig(host_bytes=-1)
