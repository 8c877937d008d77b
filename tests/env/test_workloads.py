"""Workloads as families draw them: statistics, sharing, reproducibility."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from workload_kit import HORIZON_S, fields, process, service_s

from pikv_env.traces import TraceLibrary
from pikv_env.workloads import (
    FAMILIES,
    Popularity,
    describe,
    make_workload,
)
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.requests import RequestList

PINNED = {
    "facts-poisson": "46e3502e4d74abb0",
    "agent-loops": "2f994a32b7fe40be",
    "rag-tenants": "d15000f3aacec2a5",
    "replay-conversation": "c816dbb07c577115",
}


def workload_digest(workload: RequestList) -> str:
    """Hash of a workload's requests, times to the microsecond."""
    told = [
        (round(r.arrival_s, 6), r.prompt_tokens, r.output_tokens, r.class_id, r.content, r.hash_ids.tolist())
        for r in workload.requests
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def test_family_and_episode_number_name_one_workload_for_ever(library: TraceLibrary) -> None:
    # Pinned: a change of any of these changes what published numbers were measured on.
    found = {n: workload_digest(make_workload(n, library, 1, 120.0, 0.5, service_s)) for n in PINNED}
    assert found == PINNED
    renamed = dataclasses.replace(FAMILIES["facts-poisson"], id="mine")
    again = make_workload(renamed, library, 1, 120.0, 0.5, service_s)
    assert workload_digest(again) == PINNED["facts-poisson"], "the seed names it, whatever the family is called"
    other = dataclasses.replace(renamed, seed=renamed.seed + 1)
    assert workload_digest(make_workload(other, library, 1, 120.0, 0.5, service_s)) != PINNED["facts-poisson"]
    assert len({FAMILIES[name].seed for name in FAMILIES}) == len(FAMILIES.names())


@pytest.mark.parametrize("name", FAMILIES.names())
def test_statistics_come_out_as_the_family_says(library: TraceLibrary, unit_load: float, name: str) -> None:
    family = FAMILIES[name]
    for seed in range(3):
        workload = make_workload(name, library, seed, HORIZON_S, unit_load, service_s)
        statistics = describe(workload)
        for key, (low, high) in family.expected.items():
            assert low <= statistics[key] <= high, f"seed {seed}: {key}={statistics[key]:.3f}"
        sessions = family.sharing == "growing"  # tens of requests each, so their number varies
        assert abs(statistics["batch_share"] - family.batch_share) < (0.12 if sessions else 0.06)
        offered = sum(service_s(r.prompt_tokens, r.output_tokens) for r in workload.requests) / HORIZON_S
        assert abs(offered / unit_load - 1) < (0.3 if sessions else 0.2)


@pytest.mark.parametrize("name", FAMILIES.names())
def test_workloads_are_deterministic(library: TraceLibrary, name: str) -> None:
    a, b, c = (make_workload(name, library, seed, 300.0, 0.5, service_s) for seed in (3, 3, 4))
    assert fields(a) == fields(b) and fields(a) != fields(c)
    assert not {int(h) for r in a.requests for h in r.hash_ids} & {int(h) for r in c.requests for h in r.hash_ids}


@pytest.mark.parametrize("name", FAMILIES.names())
def test_requests_fit_their_contents_and_prefixes_are_honest(library: TraceLibrary, name: str) -> None:
    assert library.token_ids is not None
    family, workload = FAMILIES[name], make_workload(name, library, 5, 600.0, 0.5, service_s)
    before: dict[int, object] = {}
    for number, r in enumerate(workload.requests):
        assert r.request_id == number and 0 <= r.arrival_s < 600.0
        assert library.families[library.family_of[r.content]] in family.kinds
        assert r.prompt_tokens == library.prompt_tokens[r.content]
        assert r.output_tokens == library.output_tokens[r.content]
        blocks = r.hash_ids.tolist()
        assert len(blocks) == library.num_blocks[r.content] and min(blocks) > 0
        for j, block in enumerate(blocks):  # equal ids promise equal ids before them, so prefixes are notional texts
            assert before.setdefault(block, blocks[j - 1] if j else 0) == (blocks[j - 1] if j else 0)
        if not family.recorded_text:
            assert r.prompt_ids is None and r.exact_ids is None, "no model may be served with a text that is not there"
            continue
        assert r.prompt_ids is not None and r.exact_ids is not None
        ids = np.concatenate([r.prompt_ids, r.exact_ids])
        assert np.array_equal(ids, library.token_ids[r.content, : len(ids)])
        for j, block in enumerate(blocks):  # and equal recorded texts
            prefix = ids[: (j + 1) * library.page_tokens].tobytes()
            assert before.setdefault(-block, prefix) == prefix


def test_sharing_ends_with_the_document(library: TraceLibrary) -> None:
    workload = make_workload("facts-poisson", library, 0, HORIZON_S, 0.5, service_s)
    users: dict[int, set[int]] = defaultdict(set)
    for r in workload.requests:
        for block in r.hash_ids.tolist():
            users[block].add(r.request_id)
    for r in workload.requests:
        shared = int(library.shared_tokens[r.content]) // library.page_tokens
        assert all(len(users[b]) == 1 for b in r.hash_ids[shared:].tolist())
    assert max(len(u) for u in users.values()) > 5


def test_equal_text_of_different_copies_is_not_shared(library: TraceLibrary) -> None:
    workload = make_workload("facts-poisson", library, 0, HORIZON_S, 0.5, service_s)
    first: dict[int, set[int]] = defaultdict(set)
    for r in workload.requests:
        first[int(library.group_of[r.content])].add(int(r.hash_ids[0]))
    assert len(first) == 4 and min(len(ids) for ids in first.values()) > 10


def test_next_turn_finds_the_previous_prompt(library: TraceLibrary) -> None:
    workload = make_workload("dialogue-sessions", library, 0, HORIZON_S, 0.5, service_s)
    sessions = defaultdict(list)
    for r in workload.requests:
        sessions[int(r.hash_ids[0])].append(r)
    followed = 0
    for rows in sessions.values():
        assert len({r.class_id for r in rows}) == 1
        turns = library.turn_of[[r.content for r in rows]].tolist()
        assert turns == list(range(turns[0], turns[0] + len(turns)))
        for before, after in pairwise(rows):
            full = before.prompt_tokens // library.page_tokens
            assert np.array_equal(before.hash_ids[:full], after.hash_ids[:full])
            assert not set(before.hash_ids[full:].tolist()) & set(after.hash_ids.tolist())
            followed += 1
    assert followed > 100


def test_regime_shift_changes_content_and_rate(library: TraceLibrary, unit_load: float) -> None:
    workload = make_workload("regime-shift", library, 0, HORIZON_S, 2 * unit_load, service_s)
    kinds = {True: set(), False: set()}  # type: ignore[var-annotated]
    for r in workload.requests:
        kinds[r.arrival_s < HORIZON_S / 2].add(library.families[library.family_of[r.content]])
    assert kinds == {True: {"facts", "copy"}, False: {"needle", "regime"}}
    early = np.mean([r.arrival_s < HORIZON_S / 2 for r in workload.requests])
    assert 0.25 < early < 0.42


def test_popularity_and_drift_act(library: TraceLibrary, unit_load: float) -> None:
    def hits(**change: float) -> float:
        family = dataclasses.replace(
            FAMILIES["facts-poisson"], popularity=Popularity(**{"zipf": 0.8, "instances": 256, **change})
        )
        return describe(make_workload(family, library, 0, HORIZON_S, unit_load, service_s))["prefix_hit_rate"]

    assert hits(zipf=0.2) < hits(zipf=0.8) < hits(zipf=1.4)
    assert hits(instances=1024) < hits(instances=64)
    assert hits(lifetime_s=60.0) < hits(lifetime_s=1800.0)


def test_replay_can_replace_the_arrivals_of_a_family(library: TraceLibrary, tmp_path: Path) -> None:
    family = dataclasses.replace(FAMILIES["facts-poisson"], id="facts-replay", arrivals=process("replay", tmp_path))
    assert len(make_workload(family, library, 0, HORIZON_S, 0.3, service_s).requests) > 500


def test_library_without_tokens_gives_requests_without_ids(library: TraceLibrary) -> None:
    bare = dataclasses.replace(library, token_ids=None)
    workload = make_workload("code-bursty", bare, 0, 200.0, 0.5, service_s)
    assert all(r.prompt_ids is None and r.exact_ids is None for r in workload.requests)


def test_make_workload_refuses(library: TraceLibrary) -> None:
    part = library.subset(["facts"])
    with pytest.raises(ValueError, match=r"needs contents \['code'\]"):
        make_workload("code-bursty", part, 0, 100.0, 0.5, service_s)
    with pytest.raises(UnknownNameError, match="did you mean 'code-bursty'"):
        make_workload("code-burst", library, 0, 100.0, 0.5, service_s)
    with pytest.raises(ValueError, match="load=0"):
        make_workload("code-bursty", library, 0, 100.0, 0.0, service_s)
    with pytest.raises(ValueError, match="horizon_s=-1"):
        make_workload("code-bursty", library, 0, -1.0, 0.5, service_s)
    with pytest.raises(ValueError, match="service_s of content"):
        make_workload("code-bursty", library, 0, 100.0, 0.5, lambda p, o: 0.0)


def test_generation_is_fast(library: TraceLibrary, unit_load: float) -> None:
    make_workload("mixed-bursty", library, 0, HORIZON_S, unit_load, service_s)
    seconds = []
    for seed in range(1, 6):
        start = time.perf_counter()
        workload = make_workload("mixed-bursty", library, seed, HORIZON_S, unit_load, service_s)
        seconds.append(time.perf_counter() - start)
        assert len(workload.requests) > 1200
    assert min(seconds) < 0.1


def test_describe_an_empty_workload() -> None:
    assert describe(RequestList("none", 10.0, ()))["requests"] == 0
