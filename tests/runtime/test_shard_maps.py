"""Shard maps: homes by name, the same rule in the ledger, balance of bytes, migration of hot shards."""

from __future__ import annotations

import numpy as np
import pytest
from ledger_lab import BLOCK_BYTES, GROUPS, bank, drain, iterate, iterate_until, load, make, put, request, workload

from pikv_env.config import EnvConfig
from pikv_runtime import ledger as lg
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, GlobalControl, Telemetry
from pikv_runtime.ledger.balance import rank_loads
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.shard_maps import LEAST_LOADED, SHARD_MAPS, STAY, make_shard_map

PAGES = 40


@pytest.mark.parametrize("name", list(SHARD_MAPS))
@pytest.mark.parametrize(("ranks", "experts", "groups"), [(1, 8, 4), (4, 8, 4), (8, 6, 1), (2, 64, 3)])
def test_tables_name_ranks_that_exist(name, ranks, experts, groups) -> None:
    table = make_shard_map(name).homes(ranks, experts, groups)
    assert table.shape == (ranks, experts + 1, groups) and table.dtype == np.int8
    assert ((table >= 0) & (table < ranks) | np.isin(table, (LEAST_LOADED, STAY))).all()
    assert make_shard_map(make_shard_map(name).name) == make_shard_map(name)


def test_homes_are_what_the_maps_say() -> None:
    tags = {name: make_shard_map(name).homes(4, 8, 3)[:, :8] for name in ("expert_home", "page_stripe", "paper_xor")}
    assert tags["expert_home"][2, :, 1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert tags["page_stripe"][:, 5, 0].tolist() == [0, 1, 2, 3]
    for depth in range(4):
        assert tags["paper_xor"][depth, :, 2].tolist() == [depth ^ (e % 4) for e in range(8)]
    assert all((len(set(tags["paper_xor"][:, e, 0].tolist())) == 4) for e in range(8))  # never together


def test_one_rank_more_takes_only_its_part_by_rendezvous() -> None:
    four, five = (make_shard_map("rendezvous").homes(ranks, 128, 8)[0, :128] for ranks in (4, 5))
    moved = four != five
    assert (five[moved] == 4).all() and 0.1 < moved.mean() < 0.3
    assert np.bincount(four.ravel()).max() < 1.2 * four.size / 4
    assert (make_shard_map("expert_home").homes(5, 128, 8)[0, :128] != four).mean() > 0.5


def test_what_is_not_allowed_is_told() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'page_stripe'"):
        RuntimeConfig(shard_map="page_strip")
    with pytest.raises(ValueError, match=r"paper_xor.*ranks=3.*powers of two"):
        EnvConfig(ranks=3, runtime=RuntimeConfig(shard_map="paper_xor"))
    with pytest.raises(ValueError, match=r"paper_xor.*ranks=6"):
        make(ranks=6, shard_map="paper_xor")
    with pytest.raises(ValueError, match="every=0"):
        RuntimeConfig(shard_map="shard_eplb:every=0")


def served(shard_map: str, ranks: int = 4, tags=None, **config):
    """A ledger in which one long request decodes, all its pages tagged by `tags` (or at random)."""
    s = load(make(ranks=ranks, slots=2, blocks=80, pages=PAGES, shard_map=shard_map, **config), [long_request()])
    signals = bank(pages=PAGES)
    if tags is not None:
        signals = signals._replace(tags=np.broadcast_to(np.int8(tags), signals.tags.shape).copy())
    iterate_until(s, lambda: s.slot_tokens[0, 0] >= 35 * 4, signals=signals)
    return s, signals


def long_request():
    return request(0, 30 * 4, 9 * 4, pages=PAGES)


@pytest.mark.parametrize("name", ["page_stripe", "load_aware"])
def test_even_maps_leave_no_rank_more_than_its_share(name) -> None:
    s, _ = served(name, tags=2)  # one expert has everything
    total, largest = s.bytes_rank[0].sum(), s.bytes_rank[0].max()
    always_on = (1 + 1 + 1) * BLOCK_BYTES  # sink, window, open page
    assert largest <= total / 4 + always_on + 0.05 * total
    assert s.bytes_rank[0].min() > 0.15 * total
    uneven, _ = served("expert_home", tags=2)
    assert uneven.bytes_rank[0].max() > 0.8 * uneven.bytes_rank[0].sum()


def test_stripes_follow_the_page_index_and_untagged_pages_too() -> None:
    for tags in (1, -1):
        s, _ = served("page_stripe", tags=tags)
        blocks = s.page_block[0, 0, 1 : int(s.slot_sealed[0, 0])]
        np.testing.assert_array_equal(
            s.block_rank[0, blocks], np.repeat(np.arange(1, len(blocks) + 1) % 4, 2).reshape(-1, 2)
        )
    s, _ = served("expert_home", tags=-1)
    assert np.count_nonzero(s.bytes_rank[0]) == 1


def test_pages_stay_with_their_owner_while_it_has_least() -> None:
    s, _ = served("load_aware", ranks=2, tags=0)
    sealed = s.page_block[0, 0, 1 : int(s.slot_sealed[0, 0])]
    stayed = (s.block_rank[0, sealed] == s.slot_owner[0, 0]).mean()
    assert 0.2 < stayed < 0.6  # the owner has the always-on set, too
    assert abs(int(s.bytes_rank[0, 0]) - int(s.bytes_rank[0, 1])) <= 2 * BLOCK_BYTES


def end_interval(s) -> None:
    """Telemetry, and a control that asks for nothing."""
    told, control = Telemetry.zeros(GROUPS), Control.neutral(GROUPS)
    lg.write_telemetry(s, 0, told.groups, told.globals)
    control.globals[GlobalControl.WINDOW] = 1
    put(s, control)
    lg.check_integrity(s, 0)


def test_hot_shards_leave_the_busiest_rank_and_their_pages_follow() -> None:
    tags = np.random.default_rng(3).integers(0, 2, (6, 2, PAGES)).astype(np.int8)  # experts 0 and 1: both on rank 0
    s, _ = served("shard_eplb:every=2,margin=5", tags=0)
    s = load(s, [long_request()])
    signals = bank(pages=PAGES)._replace(tags=tags)
    iterate_until(s, lambda: s.slot_tokens[0, 0] >= 33 * 4, signals=signals)
    before, moved = s.bytes_rank[0].copy(), float(s.tally[0, lg.Tally.LINK_BYTES])
    end_interval(s)
    np.testing.assert_array_equal(s.bytes_rank[0], before)  # not due yet
    uneven = rank_loads(s, 0).max() / rank_loads(s, 0).mean()
    end_interval(s)
    assert rank_loads(s, 0).max() / rank_loads(s, 0).mean() < 0.6 * uneven
    assert s.bytes_rank[0].max() < before.max() and s.bytes_rank[0].sum() == before.sum()
    gone = before.max() - s.bytes_rank[0].max()
    assert s.tally[0, lg.Tally.LINK_BYTES] - moved >= gone > 0
    homes = s.shard_home[0, 0, :2]
    sealed = s.page_block[0, 0, 1 : int(s.slot_sealed[0, 0])]
    np.testing.assert_array_equal(
        s.block_rank[0, sealed], np.stack([homes[s.block_tag[0, sealed, layer], layer] for layer in range(2)], 1)
    )
    drain(s, signals=signals)
    lg.clear(s, 0)
    np.testing.assert_array_equal(s.shard_home[0], s.shard_map)  # the next episode begins anew


def test_a_balanced_load_moves_nothing() -> None:
    s, _ = served("shard_eplb:every=1,margin=1000")
    moved = float(s.tally[0, lg.Tally.LINK_BYTES])
    for _ in range(3):
        end_interval(s)
    assert s.tally[0, lg.Tally.LINK_BYTES] == moved
    np.testing.assert_array_equal(s.shard_home[0], s.shard_map)


@pytest.mark.parametrize(
    "name", ["page_stripe", "paper_xor", "rendezvous", "load_aware", "shard_eplb:every=1,margin=0"]
)
def test_invariants_hold_under_pressure(name) -> None:
    rng = np.random.default_rng(5)
    s = make(ranks=4, slots=3, blocks=28, requests=14, shard_map=name)
    s.cap_bytes[0] = 9 * BLOCK_BYTES
    load(s, workload(rng))
    signals = bank()
    for _ in range(400):
        if s.unfinished[0] <= 0:
            return
        iterate(s, signals=signals)  # checks the invariants
        end_interval(s)
        assert (s.bytes_rank[0] <= s.cap_bytes[0]).all()
    raise AssertionError("somebody starves")
