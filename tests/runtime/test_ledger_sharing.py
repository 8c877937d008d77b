"""Prefix reuse and lineage: what is shared, what is kept, and that lossy KV never passes for exact."""

from __future__ import annotations

import numpy as np
import pytest
from ledger_lab import (
    BLOCK_BYTES,
    GHOST,
    PAGE_BYTES,
    TOKENS,
    bank,
    blocks_of,
    decodes,
    drain,
    iterate,
    iterate_until,
    load,
    make,
    request,
    slot_of,
    steer,
)

from pikv_runtime import ledger as lg
from pikv_runtime.ledger import Status, Tally
from pikv_runtime.ledger.blocks import drop_block, lookup
from pikv_runtime.ledger.index import find
from pikv_runtime.ledger.references import evict_page
from pikv_runtime.ledger.schedule import preempt
from pikv_runtime.ledger.victims import evict_cached

CHAIN = 500 + np.arange(8, dtype=np.int64)
BANK = bank(pages=16)
TOP = lg.CODECS.index("bf16")


@pytest.fixture(scope="module")
def ledger():
    return make(pages=16, slots=3, blocks=60, requests=8)


def serve(s, *requests, **control):
    """Load, serve everybody but requests that arrive at 100 s, and let those arrive."""
    load(s, requests)
    steer(s, **control)
    late = sum(r.arrival_s >= 100 for r in requests)
    iterate_until(s, lambda: s.unfinished[0] == late, signals=BANK)
    s.clock_s[0] = 100.0
    return s


def twin(number, prompt, output=1, hashes=CHAIN, arrival=0.0):
    return request(number, prompt, output, hashes, arrival, pages=16)


@pytest.mark.parametrize(
    ("prompt", "same", "hits"),
    [(33, 8, 8), (32, 8, 7), (20, 8, 4), (33, 3, 3), (33, 0, 0), (3, 8, 0)],
    ids=["all", "a token stays to compute", "shorter", "they part ways", "stranger", "less than a block"],
)
def test_a_prompt_reuses_the_blocks_it_has_in_common_from_the_start(ledger, prompt, same, hits):
    s = serve(ledger, twin(0, 33), twin(1, prompt, hashes=CHAIN[:same], arrival=100.0))
    cached = int(s.cached_count[0])
    lg.plan(s, 0)
    assert s.req_hit_tokens[0, 1] == s.slot_tokens[0, slot_of(s, 1)] == hits * TOKENS
    assert s.tally[0, Tally.HIT_TOKENS] == hits * TOKENS and s.tally[0, Tally.PROMPT_TOKENS] == 33 + prompt
    assert s.cached_count[0] == cached - hits
    lg.check_integrity(s, 0)


def test_lookup_stops_at_the_first_gap(ledger):
    s = serve(ledger, twin(0, 33), twin(1, 33, arrival=100.0))
    drop_block(s, 0, find(s, 0, int(CHAIN[2])))
    assert lookup(s, 0, 1) == 2
    assert all(find(s, 0, int(key)) >= 0 for key in CHAIN[3:])


def test_of_equal_blocks_the_deepest_goes_first(ledger):
    s = serve(ledger, twin(0, 33), twin(1, 33, arrival=100.0))
    for left in range(7, -1, -1):
        assert evict_cached(s, 0)
        assert s.cached_count[0] == left
        assert lookup(s, 0, 1) == left, "a gap was torn into the chain"
    assert not evict_cached(s, 0)


def test_the_least_recently_used_chain_goes_first(ledger):
    other = CHAIN + 100
    s = serve(ledger, twin(0, 17, hashes=CHAIN[:4]), twin(1, 17, hashes=other[:4], arrival=5.0),
              twin(2, 17, hashes=CHAIN[:4], arrival=20.0))  # fmt: skip
    for _ in range(4):
        evict_cached(s, 0)
    assert all(find(s, 0, int(key)) < 0 for key in other[:4])
    assert all(find(s, 0, int(key)) >= 0 for key in CHAIN[:4])


def test_a_block_that_was_used_since_is_not_taken_for_old(ledger):
    first, second, third = CHAIN[:4], CHAIN[:4] + 100, CHAIN[:4] + 200
    made = [twin(q, 17, hashes=chain, arrival=5.0 * q) for q, chain in enumerate((first, second, third))]
    s = serve(ledger, *made, twin(3, 17, hashes=second, arrival=100.5))
    evict_cached(s, 0)  # puts all cached blocks in order
    s.clock_s[0] = 100.5
    drain(s, signals=BANK)
    for _ in range(7):
        evict_cached(s, 0)
    assert all(find(s, 0, int(key)) < 0 for key in (*first, *third))
    assert all(find(s, 0, int(key)) >= 0 for key in second)


def test_block_weights_decide_what_goes(ledger):
    s = serve(ledger, twin(0, 17, hashes=CHAIN[:4]), twin(1, 9, hashes=CHAIN[:2] + 100, arrival=5.0))
    steer(s, block_recency=-1.0)
    evict_cached(s, 0)
    assert find(s, 0, int(CHAIN[1]) + 100) < 0, "the most recent was to go first"
    steer(s, block_recency=0.0, block_length=-1.0)
    evict_cached(s, 0)
    assert find(s, 0, int(CHAIN[3])) < 0, "the longest was to go first"


def test_cached_share_bounds_cached_bytes(ledger):
    s = serve(ledger, twin(0, 33))
    s.cap_bytes[0] = 20 * BLOCK_BYTES
    for share in (0.2, 0.1, 0.05):
        steer(s, cached_share=share)
        assert s.cached_bytes[0, 0] <= share * s.cap_bytes[0]
        assert s.cached_bytes[0, 0] > share * s.cap_bytes[0] - 2 * PAGE_BYTES[1]
    steer(s, cached_share=0.0)
    assert s.cached_count[0] == 0 and s.bytes_rank[0, 0] == 0


def test_bytes_free_with_the_last_reference(ledger):
    s = load(ledger, [twin(0, 33, 20), twin(1, 33, 27, arrival=0.1)])
    iterate_until(s, lambda: decodes(s, 1), signals=BANK)
    mine, yours = blocks_of(s, 0), blocks_of(s, 1)
    assert (mine[:8] == yours[:8]).all() and mine[8] != yours[8]
    r, block, before = slot_of(s, 0), int(mine[2]), int(s.bytes_rank[0, 0])
    evict_page(s, 0, r, 2, 0)
    assert s.bytes_rank[0, 0] == before + GHOST, "the other request still reads the page"
    assert s.block_codec[0, block, 0] >= 0 and find(s, 0, int(CHAIN[2])) == block
    evict_page(s, 0, slot_of(s, 1), 2, 0)
    assert s.block_codec[0, block, 0] == -1 and s.bytes_rank[0, 0] == before + 2 * GHOST - PAGE_BYTES[1]
    assert find(s, 0, int(CHAIN[2])) == -1, "a block with a hole must not be found"
    lg.check_integrity(s, 0)
    drain(s, signals=BANK)


def test_a_page_that_its_last_reader_has_evicted_is_gone_when_the_other_leaves(ledger):
    s = load(ledger, [twin(0, 33, 12), twin(1, 33, 27, arrival=0.1)])
    iterate_until(s, lambda: decodes(s, 1) and decodes(s, 0), signals=BANK)
    block = int(blocks_of(s, 1)[2])
    evict_page(s, 0, slot_of(s, 1), 2, 0)
    iterate_until(s, lambda: s.req_status[0, 0] == Status.DONE, signals=BANK)
    assert s.block_users[0, block] == 1 and s.block_codec[0, block, 0] == -1
    assert find(s, 0, int(CHAIN[2])) == -1
    drain(s, signals=BANK)


def test_a_shared_page_is_not_demoted_by_one_of_its_readers(ledger):
    s = load(ledger, [twin(0, 33, 20), twin(1, 33, 27, arrival=0.1)])
    iterate_until(s, lambda: decodes(s, 1), signals=BANK)
    steer(s, ratio=4.0)
    assert (s.block_codec[0, blocks_of(s, 0)[:8]] <= TOP).all()
    assert s.tally[0, Tally.VETOES] > 0
    iterate_until(s, lambda: s.req_status[0, 0] == Status.DONE, signals=BANK)
    steer(s, ratio=4.0)
    assert (s.block_codec[0, blocks_of(s, 1)[1:8]] > TOP).all(), "alone, it may"


CAUSES = {
    "nothing": {},
    "sparse reading": {"fan_out": 0.3},
    "eviction": {"evict": 0.5},
    "demotion": {"ratio": 2.0},
    "reused demoted blocks": {},
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("share_lossy", [False, True])
def test_what_is_computed_over_lossy_context_is_never_shared_as_exact(cause, share_lossy):
    s = serve(SHARING[share_lossy], twin(0, 21, hashes=CHAIN[:5]), twin(1, 33, 24, arrival=100.0))
    if cause == "reused demoted blocks":
        steer(s, cached_ratio=4.0)
    iterate_until(s, lambda: decodes(s, 1), signals=BANK)
    before = blocks_of(s, 1)[:8]
    steer(s, **CAUSES[cause])
    iterate_until(s, lambda: s.slot_tokens[0, slot_of(s, 1)] >= 48, signals=BANK)
    after = blocks_of(s, 1)[9:12]
    own = 2000 + np.arange(16)
    found = [find(s, 0, int(own[p])) >= 0 for p in (9, 10, 11)]
    assert (s.block_exact[0, after] == (cause == "nothing")).all()
    assert found == [cause == "nothing" or share_lossy] * 3
    if cause != "reused demoted blocks":
        assert (s.block_exact[0, before] == 1).all(), "what was computed before is exact"
    drain(s, signals=BANK)


SHARING = {lossy: make(pages=16, slots=3, blocks=60, requests=8, share_lossy=lossy) for lossy in (False, True)}


def test_what_follows_a_shared_lossy_block_is_lossy_too():
    s = serve(SHARING[True], twin(0, 21, 30), twin(1, 40, 20, arrival=100.0), fan_out=0.3)
    steer(s)
    iterate_until(s, lambda: decodes(s, 1), signals=BANK)
    assert s.req_hit_tokens[0, 1] > 5 * TOKENS, "lossy blocks were to be reused"
    fresh = blocks_of(s, 1)[int(s.req_hit_tokens[0, 1]) // TOKENS : 10]
    assert (s.block_exact[0, fresh] == 0).all() and len(fresh)


def test_children_are_counted_though_slots_are_reused_and_parents_come_back(ledger):
    s = serve(ledger, twin(0, 33), twin(1, 17, hashes=CHAIN[:4], arrival=100.0), twin(2, 33, arrival=150.0))
    root = find(s, 0, int(CHAIN[0]))
    assert s.block_children[0, root] == 1
    drop_block(s, 0, find(s, 0, int(CHAIN[1])))
    assert s.block_children[0, root] == 0
    drop_block(s, 0, root)
    iterate_until(s, lambda: s.unfinished[0] == 1, signals=BANK)  # computes the first four again
    lg.check_integrity(s, 0)
    assert s.block_children[0, find(s, 0, int(CHAIN[0]))] == 1
    s.clock_s[0] = 150.0
    drain(s, signals=BANK)
    assert [int(s.block_children[0, find(s, 0, int(key))]) for key in CHAIN] == [1] * 7 + [0]


def test_a_request_in_prefill_shares_with_nobody_what_it_has_not_computed(ledger):
    s = load(ledger, [twin(0, 50), twin(1, 50, arrival=0.001)])
    iterate(s, signals=BANK)  # 32 tokens of the first
    lg.plan(s, 0)
    assert s.req_hit_tokens[0, 1] == 8 * TOKENS
    drain(s, signals=BANK)


@pytest.mark.parametrize("fan_out", [1.0, 0.5])
def test_what_a_lossy_read_chose_is_not_exact_after_preemption_either(ledger, fan_out):
    load(ledger, [twin(0, 8, output=25)])
    steer(ledger, fan_out=fan_out)
    iterate_until(ledger, lambda: ledger.req_generated[0, 0] >= 14, signals=BANK)
    preempt(ledger, 0, slot_of(ledger, 0))
    steer(ledger, fan_out=1.0)
    iterate_until(ledger, lambda: ledger.req_generated[0, 0] >= 16, signals=BANK)
    exact = ledger.block_exact[0, blocks_of(ledger, 0)]
    prompt_blocks, redone = 8 // TOKENS, (8 + 14) // TOKENS
    assert exact[:prompt_blocks].all()
    assert exact[prompt_blocks:redone].all() == (fan_out == 1.0)
    assert [find(ledger, 0, key) >= 0 for key in CHAIN[:redone]] == exact[:redone].astype(bool).tolist()
