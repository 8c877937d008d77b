"""Attention mass becomes telemetry and fidelity: only from what was read; what is gone counts as a ghost."""

from __future__ import annotations

import numpy as np
import pytest
from ledger_lab import (
    BLOCK_BYTES,
    GHOST,
    LAYERS,
    PAGE_BYTES,
    bank,
    blocks_of,
    decodes,
    drain,
    iterate_until,
    load,
    make,
    pages_of,
    request,
    steer,
)

from pikv_runtime import ledger as lg
from pikv_runtime.contract import GLOBAL_FEATURES, GROUP_FEATURES
from pikv_runtime.ledger import Tally
from pikv_runtime.ledger.averages import MASS_RATE
from pikv_runtime.ledger.observe import CONFLICT_WINDOW_S, observed_step, read_masks
from pikv_runtime.ledger.readset import select
from pikv_runtime.ledger.references import evict_page

PAGES = 20
BANK = bank(pages=PAGES)
BANK = BANK._replace(errors=BANK.errors + np.array([0, 0, 0.01, 0.1], np.float32))
TOP = 1


@pytest.fixture(scope="module")
def built():
    return make(pages=PAGES, slots=2, blocks=60, requests=4, max_batch_tokens=80)


@pytest.fixture
def ledger(built):
    """One audited request of 15 pages that decodes, half of whose other pages are read."""
    return decoding(built)


def decoding(built, audit=1.0):
    s = load(built, [request(0, 60, 16, pages=PAGES)], audit=audit)
    iterate_until(s, lambda: decodes(s, 0), signals=BANK)
    steer(s, fan_out=0.5)
    return s


def signals(s, seed=0):
    """(mass, score), each (L, P): mass sums to 1 over the request's pages."""
    rng = np.random.default_rng(seed)
    mass = np.zeros((LAYERS, PAGES), np.float32)
    mass[:, : s.slot_pages[0, 0]] = rng.dirichlet(np.ones(s.slot_pages[0, 0]), LAYERS)
    return mass, rng.normal(size=(LAYERS, PAGES)).astype(np.float32)


def masks(s, score):
    """(read, wished), each (L, P) of booleans."""
    parts = [read_masks(s, 0, 0, layer, score[layer]) for layer in range(LAYERS)]
    return [np.array(p, bool) for p in zip(*parts, strict=True)]


def history(s):
    return [getattr(s, name)[0, 0].copy() for name in ("page_mass", "page_mass_sum", "page_reads", "page_last_s")]


def test_the_read_set_is_the_always_on_set_and_the_best_share_of_the_others(ledger):
    _, score = signals(ledger)
    read, _ = masks(ledger, score)
    others = pages_of(ledger, 0)
    for layer in range(LAYERS):
        chosen = others[read[layer][others]]
        assert len(chosen) == np.ceil(0.5 * len(others))
        assert score[layer][chosen].min() >= np.delete(score[layer][others], np.searchsorted(others, chosen)).max()
        always = np.setdiff1d(np.arange(ledger.slot_pages[0, 0]), others)
        assert read[layer][always].all() and read[layer].sum() == len(chosen) + len(always)


def test_averages_of_unread_pages_are_held(ledger):
    mass, score = signals(ledger)
    read, _ = masks(ledger, score)
    before = history(ledger)
    ledger.clock_s[0] += 1.0
    lg.observe(ledger, 0, 0, mass, score)
    average, total, reads, last = history(ledger)
    for old, new in zip(before, (average, total, reads, last), strict=True):
        np.testing.assert_array_equal(new[~read], old[~read])
    captured = np.where(read, mass, 0)
    relative = captured / captured.sum(1, keepdims=True) * read.sum(1, keepdims=True)
    expected = before[0] + MASS_RATE * (relative - before[0])
    np.testing.assert_allclose(average[read], expected[read], rtol=1e-5)
    np.testing.assert_allclose(total[read], (before[1] + relative)[read], rtol=1e-5)
    assert (reads[read] == before[2][read] + 1).all()
    np.testing.assert_allclose(last[read], ledger.clock_s[0])


def test_the_mass_of_unread_pages_leaks_nowhere_unless_audited(built):
    outcomes = []
    for scale in (1.0, 50.0):
        s = decoding(built, audit=0.0)
        mass, score = signals(s)
        read, _ = masks(s, score)
        lg.observe(s, 0, 0, np.where(read, mass, scale * mass).astype(np.float32), score)
        groups, totals = np.zeros((8, len(GROUP_FEATURES)), np.float32), np.zeros(len(GLOBAL_FEATURES), np.float32)
        lg.write_telemetry(s, 0, groups, totals)
        outcomes.append([*history(s), s.tally[0].copy(), groups, totals])
    for one, other in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(one, other)


def test_loss_is_the_missed_mass_and_the_codec_error_of_what_is_read(ledger):
    steer(ledger, fan_out=0.5, ratio=2.0)
    for p in (3, 4):
        evict_page(ledger, 0, 0, p, 0)
    mass, score = signals(ledger)
    read, _ = masks(ledger, score)
    blocks = blocks_of(ledger, 0)
    errors = np.zeros((LAYERS, PAGES))
    for layer in range(LAYERS):
        for p, b in enumerate(blocks):
            if read[layer, p]:
                errors[layer, p] = ledger.block_error[0, b, layer, ledger.block_codec[0, b, layer]]
    assert errors.max() > 0
    before = ledger.tally[0, Tally.LOSS]
    lg.observe(ledger, 0, 0, mass, score)
    expected = (1 - (mass * read).sum(1) + (mass * errors).sum(1)).sum()
    assert ledger.tally[0, Tally.LOSS] - before == pytest.approx(expected, rel=1e-5)
    assert ledger.req_loss[0, 0] == pytest.approx(ledger.tally[0, Tally.LOSS])


def test_an_evicted_page_leaves_the_bytes_of_a_ghost_until_the_request_ends(ledger):
    s = ledger
    before, codec = int(s.bytes_rank[0, 0]), int(s.block_codec[0, blocks_of(s, 0)[3], 0])
    evict_page(s, 0, 0, 3, 0)
    assert s.page_ghost[0, 0, 0, 3] == 1 and s.page_live[0, 0, 0, 3] == 0
    assert s.bytes_rank[0, 0] == before - PAGE_BYTES[codec] + GHOST
    lg.check_integrity(s, 0)
    drain(s, signals=BANK)
    assert s.bytes_rank[0, 0] == s.cached_bytes[0, 0]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ghosts_lie_with_the_owner_and_only_while_the_cap_has_room(ranks):
    s = decoding(make(ranks=ranks, pages=PAGES, slots=2, blocks=60, requests=4, max_batch_tokens=80))
    owner = int(s.slot_owner[0, 0])
    blocks = blocks_of(s, 0)
    p = next(int(p) for p in pages_of(s, 0) if ranks == 1 or s.block_rank[0, blocks[p], 0] != owner)
    before = s.bytes_rank[0].copy()
    evict_page(s, 0, 0, p, 0)
    assert s.bytes_rank[0, owner] == before[owner] + GHOST - (PAGE_BYTES[TOP] if ranks == 1 else 0)
    lg.check_integrity(s, 0)
    if ranks > 1:
        s.cap_bytes[0] = int(s.bytes_rank[0].max())
        s.cap_bytes[0] = max(int(s.bytes_rank[0, owner]) + GHOST - 1, int(s.bytes_rank[0].max()))
        spare = int(s.cap_bytes[0] - s.bytes_rank[0, owner])
        s.bytes_rank[0, owner] += spare  # full to the last byte
        evict_page(s, 0, 0, p, 1)
        freed = PAGE_BYTES[TOP] if s.block_rank[0, blocks[p], 1] == owner else 0
        assert s.page_ghost[0, 0, 1, p] == (freed > 0)
        s.bytes_rank[0, owner] -= spare
        lg.check_integrity(s, 0)


def test_a_wished_ghost_is_a_miss_and_soon_after_its_eviction_a_conflict(ledger):
    s = ledger
    mass, score = signals(s)
    best = [int(pages_of(s, 0)[np.argmax(score[layer][pages_of(s, 0)])]) for layer in range(LAYERS)]
    evict_page(s, 0, 0, best[0], 0)
    tag = int(s.block_tag[0, blocks_of(s, 0)[best[0]], 0])
    before = s.tally[0].copy()
    lg.observe(s, 0, 0, mass, score)
    change = s.tally[0] - before
    read, wished = masks(s, score)
    assert wished[0, best[0]] and not read[0, best[0]]
    assert change[Tally.WISHED_PAGES] == wished.sum()
    assert change[Tally.GHOST_WISHES] == change[Tally.CONFLICTS] == 1
    assert s.group_wishes[0, tag * 2, 1] == 1 and s.group_wishes[0, :, 1].sum() == 1
    assert change[Tally.WISHED_MASS] == pytest.approx(mass[wished].sum(), rel=1e-5)
    assert change[Tally.HIT_MASS] == pytest.approx(mass[wished].sum() - mass[0, best[0]], rel=1e-5)
    s.clock_s[0] += CONFLICT_WINDOW_S + 1
    before = s.tally[0].copy()
    lg.observe(s, 0, 0, mass, score)
    change = s.tally[0] - before
    assert change[Tally.GHOST_WISHES] == 1 and change[Tally.CONFLICTS] == 0


@pytest.mark.parametrize("seed", range(20))
def test_select_takes_the_best_by_biased_score_ties_to_the_lower_page(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 40))
    score = rng.integers(0, 4, count).astype(np.float32)
    bias = rng.choice([-1, 0, 0.5], count).astype(np.float32)
    candidate = rng.integers(0, 2, count).astype(np.int8)
    ghost = ((1 - candidate) * rng.integers(0, 2, count)).astype(np.int8)
    fan_out = float(rng.uniform(0.05, 1))
    read, wished = select(score, candidate, ghost, bias, fan_out)
    listed = np.flatnonzero(candidate | ghost)
    if len(listed) == 0:
        assert not read.any() and not wished.any()
        return
    k = int(np.ceil(fan_out * candidate.sum() - 1e-9))
    wishes = int(np.ceil(fan_out * len(listed) - 1e-9))
    known = score[listed].astype(float)
    value = (known - known.mean()) / np.sqrt(known.var() + 1e-12) + bias[listed]
    order = listed[np.lexsort((listed, -value.round(9)))]
    assert set(np.flatnonzero(wished)) == set(order[:wishes])
    assert set(np.flatnonzero(read)) == set(order[candidate[order] == 1][:k])


def test_the_routing_bias_moves_the_read_set_towards_its_groups(ledger):
    _, score = signals(ledger)
    score = np.zeros_like(score) + 0.01 * score
    tags = ledger.block_tag[0, blocks_of(ledger, 0)].astype(int)
    shares = []
    for sign in (-1.0, 1.0):
        bias = np.zeros(8)
        bias[[2, 3]] = sign  # expert 1
        steer(ledger, fan_out=0.3, bias=bias)
        read, _ = masks(ledger, score)
        others = pages_of(ledger, 0)
        shares.append(sum(read[layer][others][tags[others, layer] == 1].sum() for layer in range(LAYERS)))
    assert shares[0] == 0 or shares[0] < shares[1]
    assert shares[1] > 0 and BLOCK_BYTES > 0


def test_the_observed_steps_are_drawn_one_of_every_few_and_all_are_counted():
    s = make(pages=PAGES, slots=1, blocks=60, requests=24, observe_tokens=8, observe="drawn")
    load(s, [request(q, 9, 60, content=0, pages=PAGES) for q in range(24)])
    steps = np.array([[observed_step(s, 0, q, o) for o in range(8)] for q in range(24)])
    assert (steps // 8 == np.arange(8)).all(), "one of every eight"
    assert np.bincount((steps % 8).ravel(), minlength=8).min() > 0.05 * steps.size, "any of them"
    seen = np.zeros(24, int)
    while s.unfinished[0] > 0:
        lg.plan(s, 0)
        q = int(s.slot_request[0, 0])
        at = lg.due(s, 0, 0)
        assert (at >= 0) == (decodes(s, q) and int(s.req_generated[0, q]) - 1 in steps[q])
        seen[q] += at >= 0
        lg.commit(s, 0, lg.price(s, 0))
    np.testing.assert_array_equal(seen, lg.observations(s, 0))
    lg.load_requests(s, 0, [request(0, 9, 60, pages=PAGES)], audit_seed=1, audit_share=0.0)
    assert [observed_step(s, 0, 0, o) for o in range(8)] != steps[0].tolist(), "another seed, other steps"
