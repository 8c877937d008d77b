"""Workloads: contents, arrivals, families, their statistics, and the Mooncake line format."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pikv_env.traces import TraceLibrary, synthetic_library
from pikv_env.workloads import (
    ARRIVALS,
    FAMILIES,
    Family,
    MooncakeError,
    Phase,
    Popularity,
    Replay,
    Sessions,
    describe,
    families_of,
    load_mooncake,
    make_workload,
    read_mooncake,
    write_mooncake,
)
from pikv_env.workloads.arrivals import Diurnal, Gamma, OnOff, Poisson, warp
from pikv_env.workloads.content import KINDS, OUTPUT_RANGE, PROMPT_RANGE, SESSION_KINDS, build_contents
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.requests import RequestList

HORIZON_S = 1800.0


def service_s(prompt_tokens: int, output_tokens: int) -> float:
    return 1e-4 * prompt_tokens + 5e-3 * output_tokens


@pytest.fixture(scope="module")
def library() -> TraceLibrary:
    return synthetic_library(0, contents_per_family=16)


@pytest.fixture(scope="module")
def unit_load(library: TraceLibrary) -> float:
    """The load at which about one request arrives per second."""
    pairs = zip(library.prompt_tokens.tolist(), library.output_tokens.tolist(), strict=True)
    return float(np.mean([service_s(p, o) for p, o in pairs]))


def fields(workload: RequestList) -> list[tuple[object, ...]]:
    return [
        (
            r.request_id,
            r.arrival_s,
            r.prompt_tokens,
            r.output_tokens,
            r.class_id,
            r.content,
            r.hash_ids.tobytes(),
        )
        for r in workload.requests
    ]


# Contents


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_contents_keep_their_promises(kind: str) -> None:
    contents = build_contents(kind, 30, seed=1)
    assert len(contents) == 30
    groups = defaultdict(list)
    for spec in contents:
        assert PROMPT_RANGE[0] <= len(spec.ids) <= PROMPT_RANGE[1]
        assert OUTPUT_RANGE[0] <= spec.output_tokens <= OUTPUT_RANGE[1]
        assert spec.ids.dtype == np.int32 and spec.ids.min() >= 0 and spec.ids.max() < 256
        assert spec.family == kind and 0 <= spec.shared_tokens < len(spec.ids)
        groups[spec.group].append(spec)
    assert len(groups) == 8
    for rows in groups.values():
        for before, after in pairwise(rows):
            assert np.array_equal(before.ids[: after.shared_tokens], after.ids[: after.shared_tokens])
            if kind in SESSION_KINDS:
                assert after.turn == before.turn + 1 and after.shared_tokens == len(before.ids)
            else:
                assert after.turn == before.turn == 0 and after.shared_tokens == before.shared_tokens


def test_contents_are_deterministic() -> None:
    a, b, c = (build_contents("facts", 6, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(x.ids, y.ids) and x.output_tokens == y.output_tokens for x, y in zip(a, b, strict=True))
    assert any(not np.array_equal(x.ids, y.ids) for x, y in zip(a, c, strict=True))
    assert len({spec.ids.tobytes() for spec in a}) > 3, "the questions of a document do not differ"


@pytest.mark.parametrize("kind", ["facts", "needle", "dialogue", "dictionary"])
def test_questions_ask_for_what_stands_far_back(kind: str) -> None:
    distances = []
    for spec in build_contents(kind, 20, seed=3):
        prompt = spec.ids.astype(np.uint8).tobytes()
        cue = {"facts": prompt[-3:], "dictionary": prompt[-8:-6]}.get(kind, prompt[-17:])
        first = prompt.find(cue)
        assert 0 <= first < len(prompt) - len(cue), prompt[-60:]
        distances.append(1 - first / len(prompt))
    assert np.median(distances) > 0.4


def test_contents_refuse_bad_arguments() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'facts'"):
        build_contents("fact", 1, seed=0)
    with pytest.raises(ValueError, match="prompt_range"):
        build_contents("facts", 1, seed=0, prompt_range=(10, 20))
    with pytest.raises(ValueError, match="too narrow for dialogues"):
        build_contents("dialogue", 4, seed=0, prompt_range=(128, 400))
    with pytest.raises(ValueError, match="output_range"):
        build_contents("facts", 1, seed=0, output_range=(0, 20))


# Arrivals


def process(name: str, tmp_path: Path) -> object:
    if name not in ("replay", "trace"):
        return ARRIVALS[name]()
    path = tmp_path / "trace.jsonl"
    rng = np.random.default_rng(0)
    stamps = np.sort(rng.integers(0, 200, 500)) * 3000
    lines = [{"timestamp": int(t), "input_length": 10, "output_length": 5, "hash_ids": [1]} for t in stamps]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return ARRIVALS[name](path)


@pytest.mark.parametrize("name", ARRIVALS.names())
@pytest.mark.parametrize("rate", [0.05, 2.0])
def test_arrivals_are_sorted_inside_and_at_the_rate(name: str, rate: float, tmp_path: Path) -> None:
    draw = process(name, tmp_path)
    counts = []
    for seed in range(20):
        times = draw(np.random.default_rng(seed), rate, HORIZON_S)  # type: ignore[operator]
        assert np.all(np.diff(times) >= 0)
        assert not len(times) or (times[0] >= 0 and times[-1] < HORIZON_S)
        assert np.array_equal(times, draw(np.random.default_rng(seed), rate, HORIZON_S))  # type: ignore[operator]
        counts.append(len(times))
    assert abs(np.mean(counts) / (rate * HORIZON_S) - 1) < (0.25 if rate < 1 else 0.08)
    with pytest.raises(ValueError, match="must be positive"):
        draw(np.random.default_rng(0), 0.0, HORIZON_S)  # type: ignore[operator]


@pytest.mark.parametrize(("draw", "low", "high"), [(Poisson(), 0.9, 1.1), (Gamma(4.0), 3.0, 5.0), (OnOff(), 1.2, 3)])
def test_burstiness(draw: Poisson, low: float, high: float) -> None:
    gaps = np.diff(draw(np.random.default_rng(0), 5.0, 4 * HORIZON_S))
    assert low < gaps.std() / gaps.mean() < high


def test_diurnal_swings_with_its_period() -> None:
    times = np.concatenate([Diurnal(600, 0.9)(np.random.default_rng(s), 5.0, HORIZON_S) for s in [4]])
    counts, _ = np.histogram(times, bins=36, range=(0, HORIZON_S))
    power = np.abs(np.fft.rfft(counts - counts.mean()))
    assert int(np.argmax(power)) == 3


def test_sessions_number_their_turns() -> None:
    times, session, turn = Sessions(2, 5, think_median_s=20).draw(np.random.default_rng(1), 2.0, HORIZON_S)
    assert turn.min() == 0 and turn.max() == 4 and len(times) == len(session) == len(turn)
    for s in np.unique(session)[:50]:
        own = turn[session == s]
        assert np.array_equal(own, np.arange(own[0], own[0] + len(own)))
    halves = np.mean(times < HORIZON_S / 2)
    assert 0.45 < halves < 0.55, "sessions under way at time 0 are missing"


def test_replay_breaks_up_the_quantised_stamps(tmp_path: Path) -> None:
    times = process("replay", tmp_path)(np.random.default_rng(0), 2.0, HORIZON_S)  # type: ignore[operator]
    assert len(np.unique(times)) == len(times)


def test_warp_keeps_the_count_and_bends_the_rate() -> None:
    times = np.linspace(0, 99.9, 3000)
    bent = warp(times, np.array([0.0, 50.0, 100.0]), np.array([1.0, 2.0]), 100.0)
    assert len(bent) == 3000 and np.all(np.diff(bent) >= 0)
    assert abs(np.mean(bent < 50) - 1 / 3) < 0.01


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gamma(0),
        lambda: Diurnal(amplitude=2),
        lambda: OnOff(lull=-1),
        lambda: Sessions(3, 2),
        lambda: Sessions(think_median_s=0),
        lambda: Replay(""),
    ],
)
def test_processes_refuse_bad_parameters(make: type) -> None:
    with pytest.raises(ValueError, match="="):
        make()


# Families


def test_families_and_splits() -> None:
    assert len(FAMILIES.names()) >= 10
    required = {
        "train": {"facts-poisson", "code-bursty", "prose-diurnal", "copy-onoff"},
        "validation": {"mixed-bursty"},
        "test": {"dialogue-sessions", "needle-onoff", "regime-shift"},
    }
    for split, names in required.items():
        assert names <= set(families_of(split))  # type: ignore[arg-type]
    seen = {kind for name in families_of("train") for kind in FAMILIES[name].kinds}
    for name in families_of("test"):
        assert set(FAMILIES[name].kinds) - seen, f"{name} has no content of its own"
    with pytest.raises(UnknownNameError, match="split"):
        families_of("tset")  # type: ignore[arg-type]
    for name in FAMILIES:
        family = FAMILIES[name]
        assert set(family.kinds) <= set(KINDS) and family.description and family.source and family.licence


def test_the_documentation_lists_every_family() -> None:
    text = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text()
    for name in FAMILIES:
        assert f"| `{name}` | {FAMILIES[name].split} |" in text


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


@pytest.mark.parametrize(
    "change",
    [
        {"split": "dev"},
        {"sharing": "all"},
        {"sharing": "session"},
        {"phases": ()},
        {"batch_share": 1.5},
    ],
)
def test_families_refuse_bad_fields(change: dict[str, object]) -> None:
    good = FAMILIES["facts-poisson"]
    with pytest.raises(ValueError, match=r"allowed|needs|go together"):
        dataclasses.replace(good, **change)  # type: ignore[arg-type]
    assert isinstance(good, Family)


def test_parts_of_families_refuse_bad_fields() -> None:
    with pytest.raises(ValueError, match="phase"):
        Phase({})
    with pytest.raises(ValueError, match="instances=0"):
        Popularity(instances=0)


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


# Mooncake


def lines(*records: dict[str, object]) -> str:
    return "\n".join(json.dumps(record) for record in records) + "\n"


def record(**change: object) -> dict[str, object]:
    return {"timestamp": 0, "input_length": 1500, "output_length": 320, "hash_ids": [7, 8, 9], **change}


def test_mooncake_loads_with_scale(library: TraceLibrary, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(lines(record(), record(timestamp=9000, hash_ids=[7, 8, 10])) + "\n")
    for scale, pages, shared in ((32.0, 2, 2), (1.0, 93, 64), (8.0, 11, 8), (64.0, 1, 1)):
        workload = load_mooncake(path, library, token_scale=scale, lengths="trace")
        a, b = workload.requests
        assert a.prompt_tokens == round(1500 / scale) and a.output_tokens == round(320 / scale)
        assert a.prompt_tokens // 16 == pages, scale
        common = int(np.sum(a.hash_ids[: len(b.hash_ids)] == b.hash_ids))
        assert common == min(shared, pages) and np.array_equal(a.hash_ids[:common], b.hash_ids[:common])


def test_mooncake_requests_can_be_replayed(library: TraceLibrary, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rng = np.random.default_rng(0)
    sizes = rng.integers(500, 60_000, 200)
    path.write_text(
        lines(
            *(
                record(
                    timestamp=i * 300,
                    input_length=int(s),
                    hash_ids=[0, *range(i * 1000 + 1, i * 1000 + 1 + (s - 1) // 512)],
                )
                for i, s in enumerate(sizes.tolist())
            )
        )
    )
    workload = load_mooncake(path, library, seed=1, batch_share=0.5)
    for r in workload.requests:
        assert r.prompt_tokens == library.prompt_tokens[r.content]
        assert len(r.hash_ids) == library.num_blocks[r.content] and r.hash_ids.min() > 0
    assert len({r.class_id for r in workload.requests}) == 2
    assert len({int(r.hash_ids[0]) for r in workload.requests}) == 1, "block 0 is in every request"
    assert fields(workload) == fields(load_mooncake(path, library, seed=1, batch_share=0.5))
    assert fields(workload) != fields(load_mooncake(path, library, seed=2, batch_share=0.5))
    nearest = np.abs(library.prompt_tokens[:, None] - sizes / 32).min(axis=0)
    chosen = {r.arrival_s: r for r in workload.requests}
    assert len(chosen) == 200 and len(load_mooncake(path, library, max_requests=20).requests) == 20
    got = sorted(r.prompt_tokens for r in workload.requests)
    want = sorted(
        library.prompt_tokens[np.argmin(np.abs(library.prompt_tokens[:, None] - s / 32), 0)][0] for s in sizes
    )
    assert np.max(np.abs(np.array(got) - np.array(want))) <= 2 * nearest.max() + 1


def test_mooncake_round_trip_keeps_sharing(library: TraceLibrary, tmp_path: Path) -> None:
    path = tmp_path / "written.jsonl"
    workload = make_workload("facts-poisson", library, 0, 600.0, 0.5, service_s)
    write_mooncake(path, workload, library.page_tokens)
    read = load_mooncake(path, library, token_scale=1, block_tokens=library.page_tokens, jitter_ms=0, lengths="trace")
    assert [r.prompt_tokens for r in read.requests] == [r.prompt_tokens for r in workload.requests]
    before, after = describe(workload), describe(read)
    for key in ("prefix_hit_rate", "once_share", "prompt_tokens", "output_tokens"):
        assert before[key] == pytest.approx(after[key])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{oops", "not JSON"),
        ("[1, 2]", "a list, expected an object"),
        (json.dumps(record(timestamp=-1)), "timestamp=-1"),
        (json.dumps(record(timestamp="now")), "timestamp=now"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 1, "hash_ids": [1]}', "timestamp=nan"),
        (json.dumps(record(input_length=0)), "input_length=0"),
        (json.dumps(record(input_length=2.5)), "input_length=2.5"),
        (json.dumps(record(output_length=True)), "output_length=True"),
        (json.dumps(record(hash_ids=[1, -2])), "hash_ids"),
        (json.dumps(record(hash_ids="x")), "hash_ids=x"),
        (json.dumps(record(hash_ids=[1, 2])), r"2 hash_ids, but input_length=1500 has 3 blocks of 512"),
        (json.dumps({"timestamp": 1}), "input_length=None"),
    ],
)
def test_mooncake_refuses_corrupt_lines(tmp_path: Path, bad: str, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(lines(record()) + "\n" + bad + "\n")
    with pytest.raises(MooncakeError, match=r"bad\.jsonl:3: .*" + reason):
        read_mooncake(path, block_tokens=512)


def test_mooncake_refuses_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(MooncakeError, match="cannot be read"):
        read_mooncake(tmp_path / "missing.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(MooncakeError, match="holds no requests"):
        read_mooncake(empty)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(lines(*[record()] * 99).encode())[:40])
    with pytest.raises(MooncakeError, match="cannot be read"):
        read_mooncake(cut)
    whole = tmp_path / "whole.jsonl.gz"
    whole.write_bytes(gzip.compress(lines(record()).encode()))
    assert read_mooncake(whole, 512)[0].hash_ids == (7, 8, 9)


@pytest.mark.shared
def test_public_mooncake_trace(library: TraceLibrary) -> None:
    folder = os.environ.get("PIKV_TRACES")
    if not folder:
        pytest.skip("PIKV_TRACES does not name a folder with trace data")
    found = sorted(Path(folder).rglob("conversation_trace.jsonl*"))
    if not found:
        pytest.skip("no Mooncake conversation trace there")
    workload = load_mooncake(found[0], library, lengths="trace")
    statistics = describe(workload)
    assert statistics["requests"] > 10_000
    assert 0.3 < statistics["prefix_hit_rate"] < 0.45
    assert 60 < statistics["gap_p50_s"] < 180
    times = Replay(found[0])(np.random.default_rng(0), 1.0, HORIZON_S)
    assert abs(len(times) / HORIZON_S - 1) < 0.15
