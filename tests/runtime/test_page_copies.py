"""Further copies of pages: bytes counted for each, one reader for each request, and they give way to anything else."""

from __future__ import annotations

import numpy as np
import pytest
from ledger_lab import BLOCK_BYTES, GROUPS, LAYERS, PAGE_BYTES, bank, iterate, iterate_until, load, make, put, request

from pikv_env.config import EnvConfig
from pikv_runtime import ledger as lg
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, GlobalControl, GroupControl, Telemetry
from pikv_runtime.ledger.balance import rank_loads
from pikv_runtime.ledger.drive import replay_signals

PAGES, BF16 = 20, PAGE_BYTES[1]


def step(s, signals, experts) -> None:
    """An iteration as the live engine makes it, with `experts` (copies - 1,) beside the tag of every page."""
    if lg.plan(s, 0) == 0:
        lg.advance(s, 0, 0.05)
        return
    replay_signals(s, 0, signals)
    for r in np.flatnonzero(s.slot_plan[0] > 0).tolist():
        for page in range(*lg.filled_pages(s, 0, r)):
            lg.also_chosen(s, 0, s.page_block[0, r, page], np.tile(np.int8(experts), (LAYERS, 1)))
    lg.commit(s, 0, lg.price(s, 0))
    lg.check_integrity(s, 0)


def served(ranks=4, tag=0, experts=(2,), cap=None, requests=None, until=16):
    """One request of 20 pages at most whose pages all have one tag and further experts."""
    s = make(ranks=ranks, slots=3, blocks=60, pages=PAGES, cap=cap, write="copies", copies=1 + len(experts))
    s = load(s, requests or [request(0, 12 * 4, 8 * 4, pages=PAGES)])
    signals = bank(pages=PAGES)
    signals = signals._replace(tags=np.full_like(signals.tags, tag))
    for _ in range(400):
        if s.slot_tokens[0, 0] >= until * 4:
            return s, signals
        step(s, signals, experts)
    raise AssertionError("it never comes to that")


def sealed(s, r=0):
    return s.page_block[0, r, s.sink_pages : int(s.slot_sealed[0, r])]


def test_a_page_lies_with_every_chosen_expert_and_counts_each_time() -> None:
    s, _ = served(tag=1, experts=(2, 3))  # four experts, four ranks
    blocks = sealed(s)
    assert len(blocks) >= 12 and (s.block_rank[0, blocks] == 1).all()
    assert (s.block_copies[0, blocks] == (1 << 2) + (1 << 3)).all()
    once = len(blocks) * LAYERS * BF16
    assert s.copy_bytes[0].tolist() == [0, 0, once, once]
    single = make(ranks=4, slots=3, blocks=60, pages=PAGES)
    assert single.block_copies.size == single.block_also.size == 0  # no room where nobody asks for it
    owner = int(s.slot_owner[0, 0])
    assert s.bytes_rank[0].sum() == 3 * once + (s.bytes_rank[0, owner] - (once if owner else 0))


def test_every_request_reads_each_page_once_and_its_own_copy_first() -> None:
    s, _ = served(tag=3, experts=(0,))
    assert int(s.slot_owner[0, 0]) == 0
    blocks = sealed(s)
    assert (s.block_rank[0, blocks] == 3).all() and (
        s.page_rank[0, 0, :, s.sink_pages : int(s.slot_sealed[0, 0])] == 0
    ).all()
    lg.plan(s, 0)
    lg.price(s, 0)
    reads = s.slot_reads[0, 0].sum((0, 2))  # by rank
    assert reads[3] == 0 and reads.sum() == s.page_live[0, 0].sum()


def test_copies_give_way_to_whoever_needs_the_room() -> None:
    many = [request(0, 12 * 4, 8 * 4, pages=PAGES), request(1, 15 * 4, 4, arrival=0.5, pages=PAGES)]
    cap = 43 * BLOCK_BYTES // 2  # the second fits beside the first's always-on set, but not beside its copies
    s, signals = served(ranks=2, tag=3, experts=(0,), cap=cap, requests=many, until=14)
    most = 0
    for _ in range(200):
        most = max(most, int(s.copy_bytes[0].sum()))
        if s.unfinished[0] == 0:
            break
        step(s, signals, (0,))
        assert (s.bytes_rank[0] <= s.cap_bytes[0]).all()
    assert s.unfinished[0] == 0 and most > 0
    assert s.copy_bytes[0].sum() == 0 and not s.block_copies[0].any()  # cached blocks are kept once
    assert s.tally[0, lg.Tally.PREEMPTIONS] == 0


def test_demoting_and_evicting_reach_every_copy() -> None:
    s, _ = served(tag=1, experts=(2,))
    before, count = s.copy_bytes[0].sum(), len(sealed(s))
    control = Control.neutral(GROUPS)
    control.globals[GlobalControl.WINDOW] = 1
    control.groups[:, GroupControl.COMPRESSION_RATIO] = 1.5
    put(s, control)
    lg.check_integrity(s, 0)
    demoted = s.copy_bytes[0].sum()
    assert demoted < 0.8 * before
    control.groups[:, GroupControl.EVICT_FRACTION] = 0.5
    put(s, control)
    lg.check_integrity(s, 0)
    assert 0 < s.copy_bytes[0].sum() < 0.7 * demoted and count > 0


def test_a_shard_too_busy_for_one_rank_gets_a_twin_and_requests_take_turns() -> None:
    options = {"ranks": 2, "slots": 4, "blocks": 120, "pages": PAGES, "layer_groups": 1}
    s = make(shard_map="shard_eplb:every=1,margin=5,copies=yes", **options)
    load(s, [request(q, 12 * 4, 8 * 4, arrival=0.01 * q, pages=PAGES) for q in range(4)])
    signals = bank(pages=PAGES)
    signals = signals._replace(tags=np.zeros_like(signals.tags))  # one expert has everything
    iterate_until(s, lambda: s.slot_tokens[0].min() >= 14 * 4, signals=signals)
    told, control = Telemetry.zeros(s.control_groups.shape[1]), Control.neutral(s.control_groups.shape[1])
    control.globals[GlobalControl.WINDOW] = 1
    lg.write_telemetry(s, 0, told.groups, told.globals)
    assert rank_loads(s, 0)[1] == 0
    put(s, control)
    lg.check_integrity(s, 0)
    assert s.shard_twin[0, 0] == 1
    assert rank_loads(s, 0)[0] == pytest.approx(rank_loads(s, 0)[1])
    assert s.copy_bytes[0, 1] > 0 and s.copy_bytes[0, 0] == 0
    reading = [np.unique(s.page_rank[0, r, :, 1 : int(s.slot_sealed[0, r])]).tolist() for r in range(4)]
    assert all(len(ranks) == 1 for ranks in reading) and {ranks[0] for ranks in reading} == {0, 1}
    s.shard_load[0] = 0.0  # nobody reads it any more: the twin goes
    put(s, control)
    assert s.copy_bytes[0].sum() == 0 and (s.shard_twin[0] == -1).all()
    for _ in range(60):
        iterate(s, signals=signals)
    lg.check_integrity(s, 0)


def test_what_cannot_keep_copies_says_so() -> None:
    with pytest.raises(ValueError, match=r"write='copies' with shard_map='page_stripe'"):
        RuntimeConfig(write="copies", shard_map="page_stripe")
    with pytest.raises(ValueError, match="copies=1"):
        RuntimeConfig(write="copies", copies=1)
    with pytest.raises(ValueError, match="traces know one expert"):
        EnvConfig(runtime=RuntimeConfig(write="copies"))
    with pytest.raises(ValueError, match="ranks=80 with copies"):
        make(ranks=80, write="copies")
