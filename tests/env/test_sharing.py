"""Sharing rules with notional text, crowds, new ranks, replayed traces, and who may not play them."""

from __future__ import annotations

import dataclasses
import gzip
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pikv_env import EnvConfig, TraceBatch, WorkloadPool
from pikv_env.builtin import resolve_library
from pikv_env.runtime_env import RuntimeEnv
from pikv_env.traces import TraceLibrary
from pikv_env.workloads import FAMILIES, Tenants, Trace, builtin_traces, describe, make_workload, read_mooncake
from pikv_env.workloads.arrivals import Diurnal, FlashCrowd
from pikv_env.workloads.families import check_text
from pikv_env.workloads.mooncake import MooncakeError, write_records
from pikv_env.workloads.replay import trace_path
from pikv_env.workloads.sessions import Sessions
from pikv_env.workloads.statistics import describe_trace
from pikv_env.workloads.trace_models import TRACE_MODELS
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.requests import BATCH, INTERACTIVE, Request, RequestList


@pytest.fixture(scope="module")
def library() -> TraceLibrary:
    return resolve_library()


def drawn(name: str, library: TraceLibrary, seed: int = 0, horizon_s: float = 1800.0, **change: object) -> RequestList:
    family = dataclasses.replace(FAMILIES[name], **change)  # type: ignore[arg-type]
    return make_workload(family, library, seed, horizon_s, 0.3, lambda p, o: 1e-4 * p + 5e-3 * o)


def users(workload: RequestList) -> dict[int, list[Request]]:
    found = defaultdict(list)
    for request in workload.requests:
        for block in request.hash_ids.tolist():
            found[block].append(request)
    return found


def test_a_tenant_shares_its_prefix_and_nothing_else(library: TraceLibrary) -> None:
    tenants = Tenants(count=5, zipf=1.0, prefix_tokens=(48, 128))
    workload = drawn("rag-tenants", library, tenants=tenants)
    of = users(workload)
    lengths = defaultdict(set)
    for r in workload.requests:
        shared = [len(of[b]) > 1 for b in r.hash_ids.tolist()]
        prefix = sum(shared)
        assert shared == sorted(shared, reverse=True) and 48 // 16 <= prefix <= 128 // 16
        assert prefix * 16 < r.prompt_tokens, "every prompt reaches beyond its tenant's prefix"
        lengths[int(r.hash_ids[0])].add(prefix)
    assert len(lengths) == 5 and all(len(sizes) == 1 for sizes in lengths.values())
    counts = sorted(Counter(int(r.hash_ids[0]) for r in workload.requests).values())
    assert counts[-1] > 2.5 * counts[0], "tenants are of Zipf's sizes"


def test_sessions_grow_by_their_answers_behind_their_tenants_prefix(library: TraceLibrary) -> None:
    workload = drawn("agent-loops", library)
    of = users(workload)
    tapes, first_blocks = defaultdict(list), Counter(int(r.hash_ids[0]) for r in workload.requests)
    for r in workload.requests:
        tapes[int(r.hash_ids[-1 if len(r.hash_ids) < 25 else 24])].append(r)  # any block behind every prefix
    assert len(first_blocks) <= 8, "all sessions of a tenant begin alike"
    followed = 0
    for rows in tapes.values():
        for before, after in pairwise(rows):
            whole = len(before.hash_ids)
            assert after.prompt_tokens >= before.prompt_tokens + before.output_tokens
            assert np.array_equal(after.hash_ids[:whole], before.hash_ids), "the answer, too, is found again"
            assert before.class_id == after.class_id
            followed += 1
    assert followed > 0.4 * len(workload.requests)
    behind = [len({u.request_id for u in of[int(r.hash_ids[-1])]}) for r in workload.requests]
    assert max(behind) <= 30, "no tape is shared by two sessions"


def test_a_session_that_outgrows_the_library_is_compacted(library: TraceLibrary) -> None:
    patient = Sessions(40, 40, think_median_s=5.0)
    workload = drawn("agent-loops", library, arrivals=patient, horizon_s=900.0)
    longest = max(int(library.prompt_tokens[library.rows_of(k)].max()) for k in FAMILIES["agent-loops"].kinds)
    assert max(r.prompt_tokens for r in workload.requests) <= longest
    sizes = [r.prompt_tokens for r in workload.requests]
    assert np.percentile(sizes, 90) > 0.7 * longest and np.percentile(sizes, 10) < 0.5 * longest
    assert describe(workload)["prefix_hit_rate"] > 0.6


def test_sessions_follow_the_day_of_their_starts() -> None:
    swing = Sessions(1, 4, think_median_s=5.0, starts=Diurnal(period_s=600.0, amplitude=1.0))
    flat = Sessions(1, 4, think_median_s=5.0)

    def spread(process: Sessions) -> float:
        counts = [np.histogram(process(np.random.default_rng(s), 2.0, 600.0), 10)[0] for s in range(8)]
        return float(np.mean([c.std() / c.mean() for c in counts]))

    assert spread(swing) > 2 * spread(flat)


def test_a_crowd_asks_about_one_new_document(library: TraceLibrary) -> None:
    process = FlashCrowd(crowds=1, peak=12.0, rise_s=10.0, fall_s=60.0)
    workload = drawn("flash-crowd", library, arrivals=process)
    counts = Counter(int(r.hash_ids[0]) for r in workload.requests)
    hot, asked = counts.most_common(1)[0]
    assert asked > 3 * counts.most_common(2)[1][1]
    times = np.array([r.arrival_s for r in workload.requests if r.hash_ids[0] == hot])
    assert np.percentile(times, 90) - times[0] < 300.0, "interest is lost within minutes"
    rate = np.histogram([r.arrival_s for r in workload.requests], 90, (0, 1800))[0]
    assert rate.max() > 4 * np.median(rate) and abs(int(rate.argmax()) * 20 - times[0]) < 60


def test_crowds_keep_the_rate_and_their_share() -> None:
    found = [FlashCrowd(2, 6.0, 20.0, 120.0).draw(np.random.default_rng(s), 2.0, 1800.0) for s in range(10)]
    assert abs(np.mean([len(f.times) for f in found]) / 3600 - 1) < 0.05
    assert {int(c) for f in found for c in f.crowd} == {-1, 0, 1}
    with pytest.raises(ValueError, match=r"peak=0\.5"):
        FlashCrowd(peak=0.5)


def test_a_reshuffle_changes_what_is_popular_not_what_there_is(library: TraceLibrary) -> None:
    popularity = dataclasses.replace(FAMILIES["popularity-shift"].popularity, zipf=1.4, lifetime_s=1e9, reshuffles=1)

    def halves(reshuffles: int) -> tuple[set[int], set[int], set[int], set[int]]:
        changed = dataclasses.replace(popularity, reshuffles=reshuffles)
        workload = drawn("popularity-shift", library, popularity=changed)
        early = Counter(int(r.hash_ids[0]) for r in workload.requests if r.arrival_s < 600)
        late = Counter(int(r.hash_ids[0]) for r in workload.requests if r.arrival_s > 1200)
        top = ({b for b, _ in c.most_common(6)} for c in (early, late))
        return (*top, set(early), set(late))

    early, late, _, _ = halves(0)
    assert len(early & late) >= 4
    early, late, all_early, all_late = halves(1)
    assert len(early & late) <= 2 and early & all_late and all_early & all_late


def test_a_replayed_family_shares_what_its_trace_shares(library: TraceLibrary) -> None:
    workload = drawn("replay-agent-loop", library)
    trace = read_mooncake(trace_path("builtin:agent-loop"), 2048)
    theirs = describe_trace(trace, 2048)["prefix_hit_rate"]
    assert abs(describe(workload)["prefix_hit_rate"] - theirs) < 0.04
    starts = {int(drawn("replay-agent-loop", library, s, 300.0).requests[0].content) for s in range(6)}
    assert len(starts) > 2, "episodes begin at random places"


def test_a_trace_that_is_too_short_starts_anew_and_shares_nothing_with_before(
    library: TraceLibrary, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl.gz"
    records = read_mooncake(trace_path("builtin:conversation"))[:60]
    write_records(path, records)
    workload = drawn("replay-conversation", library, arrivals=Trace(path), horizon_s=600.0)
    assert len(workload.requests) > 240
    first = Counter(int(r.hash_ids[0]) for r in workload.requests)  # block 0 is in every prompt of a whole block
    most = [count for _, count in first.most_common(8)]
    assert max(most) <= 60 and sum(c > 20 for c in most) >= 3


def test_traces_are_checked_when_they_are_read(library: TraceLibrary, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'agent-loop'\? allowed: agent-loop, conversation"):
        drawn("replay-conversation", library, arrivals=Trace("builtin:agent-lop"))
    with pytest.raises(MooncakeError, match="missing"):
        drawn("replay-conversation", library, arrivals=Trace(tmp_path / "missing.jsonl"))
    with pytest.raises(MooncakeError, match="hash_ids, but input_length"):
        drawn("replay-conversation", library, arrivals=Trace("builtin:agent-loop"))
    with pytest.raises(ValueError, match="token_scale=0"):
        Trace("builtin:conversation", token_scale=0)


@pytest.mark.parametrize("name", sorted(TRACE_MODELS))
def test_the_built_in_traces_are_what_their_generator_makes(name: str, tmp_path: Path) -> None:
    made = tmp_path / "made.jsonl.gz"
    write_records(made, TRACE_MODELS[name].records(0))
    assert name in builtin_traces()
    shipped = trace_path(f"builtin:{name}")
    assert gzip.decompress(made.read_bytes()) == gzip.decompress(shipped.read_bytes())
    assert sum(trace_path(f"builtin:{n}").stat().st_size for n in builtin_traces()) < 150_000


def test_notional_text_is_refused_by_whoever_needs_text() -> None:
    check_text(["facts-poisson", "dialogue-sessions"])
    with pytest.raises(ValueError, match=r"'agent-loops' shares notional text.*allowed in live runs: code-bursty"):
        RuntimeEnv(families="agent-loops")


def test_a_family_s_classes_reach_its_requests_its_lane_and_its_reference(library: TraceLibrary) -> None:
    heavy = tuple(dataclasses.replace(c, weight=2 * c.weight, fidelity_weight=3.0) for c in (INTERACTIVE, BATCH))
    usual = dataclasses.replace(FAMILIES["rag-tenants"], classes=(INTERACTIVE, BATCH))
    with pytest.raises(ValueError, match="1 classes, the contract has 2"):
        dataclasses.replace(usual, classes=heavy[:1])
    pools = []
    for classes in (usual.classes, heavy):
        FAMILIES.add("own", dataclasses.replace(usual, classes=classes))
        try:
            config = EnvConfig(families=("own", "facts-poisson"), workloads=2, horizon_s=120.0)
            pools.append(WorkloadPool(library, config, 0))
        finally:
            del FAMILIES._entries["own"]
    assert pools[1].prepared[0].workload.classes == heavy
    latency = [pool.prepared[0].reference.latency for pool in pools]
    assert latency[1] == pytest.approx(2 * latency[0])
    batch = TraceBatch(library, pools[1].config, 1, pool=pools[1])
    for workload, classes in ((0, heavy), (1, (INTERACTIVE, BATCH)), (0, heavy)):
        batch.reset_lane(0, workload=workload)
        assert batch.state.class_fidelity[0].tolist() == [c.fidelity_weight for c in classes]
        assert batch.state.class_weight[0].tolist() == [c.weight for c in classes]


def test_rules_and_arrivals_go_together() -> None:
    with pytest.raises(ValueError, match="sharing 'trace' and the arrivals `Trace` go together"):
        dataclasses.replace(FAMILIES["facts-poisson"], sharing="trace")
    with pytest.raises(ValueError, match="sharing 'document' and arrivals of single requests go together"):
        dataclasses.replace(FAMILIES["agent-loops"], sharing="document")
    with pytest.raises(ValueError, match="allows 1 phase, not 2"):
        dataclasses.replace(FAMILIES["agent-loops"], phases=FAMILIES["regime-shift"].phases)
    with pytest.raises(ValueError, match="prefix_tokens"):
        Tenants(prefix_tokens=(10, 5))
