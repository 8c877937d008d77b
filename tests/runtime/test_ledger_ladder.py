"""Controls over live pages: the ladder, eviction, the always-on set."""

from __future__ import annotations

import numpy as np
import pytest
from ledger_lab import (
    GHOST,
    GROUPS,
    LAYERS,
    PAGE_BYTES,
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
    pages_of,
    request,
    slot_of,
    steer,
)

from pikv_runtime import ledger as lg
from pikv_runtime.contract import GlobalControl
from pikv_runtime.ledger import Tally
from pikv_runtime.ledger.commit import tag_page
from pikv_runtime.ledger.sums import recount_groups
from pikv_runtime.ledger.utility import page_utility

PAGES = 60
BANK = bank(pages=PAGES)
NATIVE, TOP, INT8, INT4 = range(4)
GAIN = PAGE_BYTES[TOP] - PAGE_BYTES[INT8]


@pytest.fixture(scope="module")
def built():
    return make(pages=PAGES, slots=2, blocks=130, requests=4, max_batch_tokens=256)


@pytest.fixture
def ledger(built):
    """One request of 50 pages that decodes."""
    s = load(built, [request(0, 200, 36, pages=PAGES)])
    iterate_until(s, lambda: decodes(s, 0), signals=BANK)
    return s


def utilities(s):
    """(P, L) of the pages outside the always-on set."""
    return np.array([[page_utility(s, 0, 0, int(p), layer) for layer in range(LAYERS)] for p in pages_of(s, 0)])


def groups_of(s):
    tags = s.block_tag[0, blocks_of(s, 0)][pages_of(s, 0)].astype(int)
    return tags * 2 + s.layer_group.astype(int)


def scatter_utilities(s, seed=0):
    """Give pages random attention histories."""
    rng = np.random.default_rng(seed)
    s.page_mass[0] = rng.uniform(0, 3, s.page_mass[0].shape)
    recount_groups(s, 0)


@pytest.mark.parametrize("ratio", [1.2, 1.7, 2.4, 3.0])
def test_every_group_gets_the_mean_ratio_it_was_asked_for_to_within_one_page(ledger, ratio):
    scatter_utilities(ledger)
    steer(ledger, ratio=ratio, page_mass=1.0, page_recency=0.0)
    stored, dense = bytes_by_group(ledger, 0)
    assert (dense > 0).all()
    assert (stored <= dense / ratio + 1e-6).all()
    assert (stored >= dense / ratio - GAIN).all()
    assert ledger.tally[0, Tally.VETOES] == 0 and ledger.tally[0, Tally.ASKED] == GROUPS
    lg.check_integrity(ledger, 0)


def test_groups_are_steered_apart(ledger):
    ratios = np.linspace(1.0, 3.0, GROUPS)
    steer(ledger, ratio=ratios)
    stored, dense = bytes_by_group(ledger, 0)
    assert (stored <= dense / ratios + 1e-6).all() and (stored >= dense / ratios - GAIN).all()
    assert stored[0] == dense[0]


def test_the_lowest_utility_is_demoted_first_and_one_rung_at_a_time(ledger):
    scatter_utilities(ledger)
    steer(ledger, ratio=1.5, page_mass=1.0, page_recency=0.0)
    codecs, values, groups = codecs_of(ledger, 0)[pages_of(ledger, 0)], utilities(ledger), groups_of(ledger)
    for g in range(GROUPS):
        mine = groups == g
        order = np.argsort(values[mine], kind="stable")
        lower = codecs[mine][order]
        assert (np.diff(lower) <= 0).all(), "a page of higher utility lies on a lower rung"
        assert lower.max() - lower.min() <= 1, "a page fell two rungs while another stayed"


def test_the_ladder_only_moves_down(ledger):
    steer(ledger, ratio=3.0)
    before = codecs_of(ledger, 0)
    steer(ledger, ratio=1.0)
    np.testing.assert_array_equal(codecs_of(ledger, 0), before)
    steer(ledger, ratio=3.4)
    assert (codecs_of(ledger, 0) >= before).all()


def test_a_ratio_beyond_the_ladders_end_is_counted_as_a_veto(ledger):
    for block in blocks_of(ledger, 0):  # large groups: 4 is out of reach by more than a page
        tag_page(ledger, 0, block, np.ones(LAYERS, np.int8), np.zeros((LAYERS, 4), np.float32))
    steer(ledger, ratio=4.0)
    assert (codecs_of(ledger, 0)[pages_of(ledger, 0)] == INT4).all()
    assert ledger.tally[0, Tally.VETOES] == ledger.tally[0, Tally.ASKED] == 2


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("ratio", [1.0, 2.5])
def test_eviction_frees_the_asked_share_of_every_group_to_within_one_page(ledger, share, ratio):
    scatter_utilities(ledger)
    steer(ledger, ratio=ratio, page_mass=1.0, page_recency=0.0)
    stored, _ = bytes_by_group(ledger, 0)
    live = ledger.page_live[0, 0].T.copy()
    values, groups, pages = utilities(ledger), groups_of(ledger), pages_of(ledger, 0)
    steer(ledger, evict=share, page_mass=1.0, page_recency=0.0)
    left, _ = bytes_by_group(ledger, 0)
    freed = stored - left
    assert (freed <= share * stored + 1e-6).all()
    assert (freed > share * stored - PAGE_BYTES[TOP]).all()
    gone = (live & ~ledger.page_live[0, 0].T.astype(bool))[pages]
    for g in range(GROUPS):
        here = gone[groups == g].astype(bool)
        if here.any() and not here.all():
            assert values[groups == g][here].max() <= values[groups == g][~here].min()
    assert ledger.tally[0, Tally.EVICTED_PAGES] == gone.sum()
    lg.check_integrity(ledger, 0)


def test_a_share_smaller_than_a_page_evicts_nothing(ledger):
    steer(ledger, evict=0.01)
    assert ledger.page_live[0, 0, :, :50].all()


def test_eviction_and_compression_in_one_control_agree(ledger):
    steer(ledger, evict=0.3, ratio=2.0)
    stored, dense = bytes_by_group(ledger, 0)
    assert (stored <= dense / 2 + 1e-6).all() and (stored >= dense / 2 - GAIN).all()


def test_the_always_on_set_stays_native(ledger):
    s = ledger
    for _ in range(40):
        steer(s, ratio=4.0, evict=0.5)
        pages = s.slot_pages[0, 0]
        always = [0, *range(pages - 2, pages)]
        assert s.page_live[0, 0][:, always].all()
        assert (codecs_of(s, 0)[always] == NATIVE).all()
        if iterate(s, signals=BANK) == 0 or not decodes(s, 0):
            break
    assert s.tally[0, Tally.EVICTED_PAGES] > 0


def test_a_sink_that_was_cached_before_is_a_sink_again(built):
    prefix = 900 + np.arange(40)
    s = load(built, [request(0, 170, 1, prefix, pages=PAGES), request(1, 200, 36, prefix, arrival=9.0, pages=PAGES)])
    iterate_until(s, lambda: decodes(s, 1), signals=BANK)
    before = codecs_of(s, 1)[0]
    assert (before == TOP).all(), "the chain was sealed when it was cached"
    for _ in range(20):
        steer(s, ratio=4.0, evict=0.5)
    assert (codecs_of(s, 1)[0] == before).all() and s.page_live[0, slot_of(s, 1), :, 0].all()
    assert s.tally[0, Tally.EVICTED_PAGES] > 0


def test_untagged_pages_belong_to_no_group(built):
    s = load(built, [request(0, 200, 36, content=-1, pages=PAGES)])
    iterate_until(s, lambda: decodes(s, 0), signals=BANK)
    steer(s, ratio=4.0, evict=0.5)
    assert codecs_of(s, 0).max() == TOP and s.tally[0, Tally.EVICTED_PAGES] == 0


def test_a_request_in_prefill_is_pinned():
    s = load(make(pages=PAGES, slots=2, blocks=130, max_batch_tokens=64), [request(0, 200, 4, pages=PAGES)])
    iterate(s, signals=BANK)
    iterate(s, signals=BANK)
    steer(s, ratio=4.0, evict=0.5)
    assert s.page_live[0, 0, :, :50].all() and (codecs_of(s, 0) == NATIVE).all()


def window(s, pages):
    s.control_globals[0, GlobalControl.WINDOW] = pages


def test_a_smaller_window_takes_effect_at_once_and_a_larger_one_restores_nothing(built):
    s = load(built, [request(0, 200, 36, pages=PAGES)])
    window(s, 10)
    steer(s)
    iterate_until(s, lambda: decodes(s, 0), signals=BANK)
    pages = int(s.slot_pages[0, 0])
    assert (codecs_of(s, 0)[pages - 11 :] == NATIVE).all() and (codecs_of(s, 0)[1 : pages - 11] == TOP).all()
    window(s, 3)
    steer(s)
    assert (codecs_of(s, 0)[pages - 4 :] == NATIVE).all() and (codecs_of(s, 0)[1 : pages - 4] == TOP).all()
    steer(s, ratio=4.0)
    steer(s, evict=0.5)
    codecs, live = codecs_of(s, 0), s.page_live[0, 0].copy()
    window(s, 16)
    steer(s)
    np.testing.assert_array_equal(codecs_of(s, 0), codecs)
    np.testing.assert_array_equal(s.page_live[0, 0], live)
    steer(s, evict=0.5)
    assert (s.page_live[0, 0, :, pages - 17 :] == live[:, pages - 17 :]).all(), "what is in the window is not evicted"
    assert s.page_live[0, 0, :, : pages - 17].sum() < live[:, : pages - 17].sum()


def test_cached_blocks_are_demoted_to_the_asked_mean_ratio(built):
    s = load(built, [request(0, 200, 1, pages=PAGES)])
    drain(s, signals=BANK)
    pages = s.cached_count[0] * LAYERS
    for ratio in (1.3, 2.2, 4.0):
        steer(s, cached_ratio=ratio)
        target = max(pages * PAGE_BYTES[TOP] / ratio, pages * PAGE_BYTES[INT4])
        assert target - LAYERS * GAIN <= s.cached_bytes[0, 0] <= target
        lg.check_integrity(s, 0)
    assert s.block_codec[0][s.block_cached[0] == 1].min() == INT4
    assert PAGE_BYTES[INT4] > GHOST
