"""The Mooncake line format."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from workload_kit import HORIZON_S, fields, service_s

from pikv_env.traces import TraceLibrary
from pikv_env.workloads import (
    MooncakeError,
    Replay,
    describe,
    load_mooncake,
    make_workload,
    read_mooncake,
    write_mooncake,
)


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
