"""Sums that are kept up to date say what a count over all pages says, and a sum that drifts is found out."""

from __future__ import annotations

import numpy as np
import pytest
from ledger_lab import BLOCK_BYTES, GROUPS, bank, load, make, put, random_control, workload

from pikv_runtime import ledger as lg
from pikv_runtime.contract import GLOBAL_FEATURES, GROUP_FEATURES, GlobalFeature, GroupFeature
from pikv_runtime.ledger.drive import run_interval
from pikv_runtime.ledger.integrity import IntegrityError
from pikv_runtime.ledger.state import NATIVE
from pikv_runtime.ledger.sums import GroupSum
from pikv_runtime.ledger.utility import decoding, window_start

PAGES = 24
BANK = bank(pages=PAGES)


def told(s):
    groups, globals_ = np.zeros((GROUPS, len(GROUP_FEATURES)), np.float32), np.zeros(len(GLOBAL_FEATURES), np.float32)
    lg.write_telemetry(s, 0, groups, globals_)
    return groups, globals_


def pages_by_group(s):
    """Every tagged page of running requests as (group, live, ghost, codec, mass, age, error), without the sums."""
    rows = []
    for r in np.flatnonzero(s.slot_request[0] >= 0):
        for layer in range(s.layers):
            for p in range(s.slot_pages[0, r]):
                at = (0, r, layer, p)
                if s.page_tag[at] >= 0:
                    group = int(s.page_tag[at]) * s.layer_groups + int(s.layer_group[layer])
                    age = float(s.clock_s[0]) - float(s.page_last_s[at])
                    facts = s.page_live[at], s.page_ghost[at], s.page_codec[at], s.page_mass[at], age, s.page_error[at]
                    rows.append((group, *map(float, facts)))
    return np.array(rows).reshape(-1, 7)


def evictable(s):
    """Sealed live bytes outside the always-on sets of decoding requests; pages that several hold count in parts."""
    total = 0.0
    for r in np.flatnonzero(s.slot_request[0] >= 0):
        if not decoding(s, 0, int(r)):
            continue
        last = min(window_start(s, 0, int(r)), int(s.slot_sealed[0, r]))
        for layer in range(s.layers):
            for p in range(s.sink_pages, last):
                if s.page_live[0, r, layer, p]:
                    size = s.codec_bytes[s.page_codec[0, r, layer, p]]
                    total += float(size) / float(s.block_refs[0, s.page_block[0, r, p], layer])
    return total


@pytest.mark.parametrize("seed", range(2))
def test_telemetry_of_groups_is_that_of_a_count_over_all_pages(seed):
    rng = np.random.default_rng(seed)
    s = make(ranks=2, pages=PAGES, slots=4, blocks=110, interval_s=0.1, observe_tokens=4)
    load(s, workload(rng, count=16, pages=PAGES, gap_s=0.15), audit=0.5)
    s.interval_end_s[0], s.cap_bytes[0] = s.interval_s[0], 60 * BLOCK_BYTES
    seen = np.zeros(2)
    while s.unfinished[0] > 0:
        put(s, random_control(rng))
        run_interval(s, 0, BANK, 1e9)
        rows, (groups, globals_) = pages_by_group(s), told(s)
        live, ghosts = rows[rows[:, 1] == 1], rows[rows[:, 2] == 1]
        seen += len(live), len(ghosts)
        mass = np.bincount(live[:, 0].astype(int), live[:, 4], GROUPS)
        held = np.bincount(live[:, 0].astype(int), minlength=GROUPS)
        density = mass / max(mass.sum(), 1e-9) / np.maximum(held / max(held.sum(), 1), 1e-9)
        told_density = 2.0 ** groups[:, GroupFeature.MASS_DENSITY]
        np.testing.assert_allclose(told_density[held > 0], np.maximum(density[held > 0], 2.0**-12), rtol=1e-3)
        for g in range(GROUPS):
            own, gone = live[live[:, 0] == g], int((ghosts[:, 0] == g).sum())
            size = s.codec_bytes[own[:, 3].astype(int)]
            shares = [size[own[:, 3] == k].sum() / max(1, size.sum()) for k in (NATIVE, s.top_codec)]
            np.testing.assert_allclose(
                groups[g, [GroupFeature.NATIVE_SHARE, GroupFeature.TOP_SHARE]], shares, atol=1e-5
            )
            age = own[:, 5].sum() / max(1, len(own)) / s.interval_s[0]
            assert groups[g, GroupFeature.RECENCY] == pytest.approx(np.log1p(max(0.0, age)), abs=1e-3)
            error = min(2.0, own[:, 6].sum() / max(1, len(own)))
            assert groups[g, GroupFeature.CODEC_ERROR] == pytest.approx(error, abs=1e-5)
            assert groups[g, GroupFeature.GHOST_SHARE] == pytest.approx(gone / max(1, len(own) + gone), abs=1e-5)
        share = evictable(s) / (float(s.cap_bytes[0]) * s.ranks)
        assert globals_[GlobalFeature.LIVE_SHARE] == pytest.approx(min(1.0, share), abs=1e-5)
    assert (seen > 50).all(), "pages and ghosts were there to be counted"


@pytest.mark.parametrize("column", [GroupSum.INT8, GroupSum.MASS, GroupSum.LAST, GroupSum.GHOSTS])
def test_a_sum_that_is_off_by_one_breaks_integrity(column):
    s = make(pages=PAGES)
    lg.check_integrity(s, 0)
    s.group_sums[0, 3, column] += 1
    with pytest.raises(IntegrityError, match=column.name):
        lg.check_integrity(s, 0)


def test_what_is_not_a_number_is_counted_as_the_most_and_taken_off_again():
    s = make(pages=PAGES)
    load(s, workload(np.random.default_rng(0), count=4, pages=PAGES))
    broken = BANK._replace(errors=np.full_like(BANK.errors, np.nan))
    while s.unfinished[0] > 0:
        run_interval(s, 0, broken, 1e9)
        assert np.isfinite(told(s)[0]).all()
    assert not s.group_sums.any(), "nobody runs: nothing is left of anybody"
