"""Converters to the Mooncake line format, on sources made here; on public traces where `PIKV_TRACES` names them."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pikv_env.workloads import read_mooncake
from pikv_env.workloads.converters import CONVERTERS, ConversionError, ConvertOptions, convert
from pikv_env.workloads.mooncake import MooncakeRecord, write_records
from pikv_env.workloads.statistics import describe_trace
from pikv_runtime.registry import UnknownNameError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,1374,44
2023-11-16 18:15:50.9951690,396,109

2023-11-17 00:15:46.6805900,512,0
"""


def session(*requests: dict[str, object], size: int = 64, **more: object) -> dict[str, object]:
    return {"id": "s", "block_size": size, "hash_id_scope": "local", "requests": list(requests), **more}


def ask(t: float, tokens: int, runs: list[int], **more: object) -> dict[str, object]:
    return {"t": t, "type": "n", "in": tokens, "out": 7, "hash_id_runs": runs, **more}


def written(path: Path, *sessions: object) -> Path:
    path.write_text("\n".join(json.dumps(s) for s in sessions) + "\n")
    return path


def test_azure_prompts_differ_unless_tenants_are_invented(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    found = convert("azure", path, ConvertOptions())
    assert [(r.input_length, r.output_length) for r in found] == [(1374, 44), (396, 109), (512, 0)]
    np.testing.assert_allclose([r.timestamp_ms for r in found], [0, 4314.579, 6 * 3600 * 1000], atol=1e-3)
    ids = [i for r in found for i in r.hash_ids]
    assert [len(r.hash_ids) for r in found] == [3, 1, 1] and len(set(ids)) == len(ids)
    shared = convert("azure", path, ConvertOptions(tenants=1, tenant_tokens=1024, seed=3))
    assert shared[0].hash_ids[0] == shared[2].hash_ids[0], "a whole block of the one tenant's prefix"
    assert shared[1].hash_ids[0] not in shared[0].hash_ids, "a partial block is nobody else's"
    packed = tmp_path / "azure.csv.gz"
    packed.write_bytes(gzip.compress(AZURE.encode()))
    assert convert("azure", packed, ConvertOptions()) == found


def test_azure_tenants_are_of_zipfs_sizes(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    rows = [f"2023-11-16 18:{i // 60:02d}:{i % 60:02d},2048,5" for i in range(600)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows))
    found = convert("azure", path, ConvertOptions(tenants=3, tenant_zipf=1.0))
    assert describe_trace(found, 512)["prefix_hit_rate"] == pytest.approx(0.5, abs=0.01)
    counts = np.sort(np.unique([r.hash_ids[0] for r in found], return_counts=True)[1])
    assert len(counts) == 3 and 2 < counts[2] / counts[0] < 4.5


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("yesterday,5,5", "TIMESTAMP='yesterday' is no date"),
        ("2023-11-16 18:15:46.68,5.5,5", r"ContextTokens='5\.5' must be an integer of at least 1"),
        ("2023-11-16 18:15:46.68,0,5", "ContextTokens='0'"),
        ("2023-11-16 18:15:46.68,5,-1", "GeneratedTokens='-1' must be an integer of at least 0"),
        ("2023-11-16 18:15:46.68,5", "2 cells, expected 3"),
    ],
)
def test_azure_refuses_corrupt_lines(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE + line + "\n")
    with pytest.raises(ConversionError, match=rf"azure\.csv:6: .*{reason}"):
        convert("azure", path, ConvertOptions())
    path.write_text("TIMESTAMP,Tokens\n")
    with pytest.raises(ConversionError, match=r"azure\.csv:1: no column ContextTokens"):
        convert("azure", path, ConvertOptions())


def test_weka_blocks_are_joined_and_stay_in_their_session(tmp_path: Path) -> None:
    rows = [
        session(ask(0, 1100, [1, 17]), ask(9, 1700, [1, 16, 50, 10]), ask(20, 1700, [1, 16, 70, 10])),
        session(ask(0, 1024, [1, 16])),
    ]
    found = convert("weka", written(tmp_path / "w.jsonl", *rows), ConvertOptions(session_gap_s=1e4))
    first, second, third, other = (r.hash_ids for r in found)
    assert [len(i) for i in (first, second, third, other)] == [3, 4, 4, 2]
    assert first[:2] == second[:2] == third[:2], "1024 tokens, two blocks of 512, are the same"
    assert len({*second[2:], *third[2:], *first[2:], *other, *second[:2]}) == 9, "and nothing else is"
    assert [round(r.timestamp_ms) for r in found][:3] == [0, 9000, 20000]
    plain = session({"t": 0, "in": 128, "out": 7, "hash_ids": [4, 5]})
    assert convert("weka", written(tmp_path / "p.jsonl", plain), ConvertOptions(block_tokens=64))[0].output_length == 7


def test_weka_blocks_need_all_their_ids_to_agree(tmp_path: Path) -> None:
    rows = session(ask(0, 512, [1, 8]), ask(5, 512, [90, 7, 8, 1]))
    a, b = convert("weka", written(tmp_path / "w.jsonl", rows), ConvertOptions())
    assert a.hash_ids != b.hash_ids, "the last id alone does not make the text before it equal"


def test_weka_subagents_run_on_their_parents_clock(tmp_path: Path) -> None:
    inner = {"t": 10.5, "type": "subagent", "requests": [ask(0, 64, [900, 1]), ask(2, 128, [900, 2])]}
    found = convert(
        "weka", written(tmp_path / "w.jsonl", session(ask(0, 64, [1, 1]), inner)), ConvertOptions(block_tokens=64)
    )
    assert [r.timestamp_ms for r in found] == [0, 10500, 12500]
    assert found[1].hash_ids[0] == found[2].hash_ids[0] != found[0].hash_ids[0]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "expected a session with a list of requests"),
        (json.dumps(session(size=48)), "block_size=48 must divide block_tokens=512"),
        (json.dumps(session(ask(0, 64, [1, 2]))), "request 0: 2 hash ids, but in=64 has 1 whole blocks"),
        (json.dumps(session(ask(0, 64, [1, 1]), ask(-1, 64, [1, 1]))), "request 1: expected an object with t"),
        (json.dumps(session(ask(0, 64, [1]))), "request 0: hash_ids or hash_id_runs must be a list of integers"),
        (json.dumps(session(ask(0, 64, [1, 10**9]))), "hash_ids or hash_id_runs"),
        (json.dumps(session({"t": 0, "in": "x", "out": 1})), "in='x' and out=1"),
    ],
)
def test_weka_refuses_corrupt_lines(tmp_path: Path, bad: str, reason: str) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps(session(ask(0, 64, [1, 1]))) + "\n" + bad + "\n")
    with pytest.raises(ConversionError, match=rf"w\.jsonl:2: .*{reason}"):
        convert("weka", path, ConvertOptions())


def clients(folder: Path, trace: str, lengths: object, number: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"chunk-{number}-trace.csv").write_text(trace)
    text = lengths if isinstance(lengths, str) else json.dumps(lengths)
    (folder / f"chunk-{number}-dataset.json").write_text(text)
    return folder


LENGTHS = {"0": {"input_tokens": "{100: 0.25, 2000: 0.75}", "output_tokens": "{10: 1.0}"},
           "1200": {"input_tokens": "{600: 1.0}", "output_tokens": "{20: 0.5, 30: 0.5}"}}  # fmt: skip


def test_servegen_draws_what_its_windows_say(tmp_path: Path) -> None:
    trace = "0,2.0,1.5,Gamma,0.44,1\n600,0,0,,0,0\n1200,1.0,9,Weibull,0.3,0.1\n"
    folder = clients(tmp_path / "m", trace, LENGTHS)
    found = convert("servegen", folder, ConvertOptions(seed=1))
    times = np.array([r.timestamp_ms for r in found]) / 1000
    counts = np.histogram(times, [0, 600, 1200, 1800])[0].tolist()
    assert abs(counts[0] - 1200) <= 1 and counts[1] == 0 and abs(counts[2] - 600) <= 1
    early = [r.input_length for r, t in zip(found, times, strict=True) if t < 600]
    assert set(early) == {100, 2000} and abs(np.mean(np.array(early) == 2000) - 0.75) < 0.04
    assert {r.output_length for r, t in zip(found, times, strict=True) if t >= 1200} == {20, 30}
    gaps = np.diff(times[times < 600])
    assert 1.3 < gaps.std() / gaps.mean() < 1.7, "shape 0.44 is a CV of 1.5"
    assert found == convert("servegen", folder, ConvertOptions(seed=1)) != convert("servegen", folder, ConvertOptions())
    thin = convert("servegen", folder, ConvertOptions(duration_s=600, rate_per_s=0.5))
    assert abs(len(thin) - 300) <= 1


def test_servegen_reads_tar_files_and_leaves_out_clients_without_lengths(tmp_path: Path) -> None:
    folder = clients(tmp_path / "m", "0,1.0,1,Exponential,1,1\n", LENGTHS)
    whole = convert("servegen", folder, ConvertOptions())
    packed = tmp_path / "m.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(folder, "m")
        extra = tarfile.TarInfo("m/chunk-9-trace.csv")
        data = b"0,100.0,1,Gamma,1,1\n"
        extra.size = len(data)
        tar.addfile(extra, io.BytesIO(data))
    assert convert("servegen", packed, ConvertOptions()) == whole


@pytest.mark.parametrize(
    ("trace", "lengths", "reason"),
    [
        ("0,1,1,Gamma,1,1\n600,x,1,Gamma,1,1\n", LENGTHS, r"chunk-0-trace\.csv:2: expected begin,rate"),
        ("0,1,1,Gamma,1\n", LENGTHS, r"chunk-0-trace\.csv:1: expected begin,rate"),
        ("0,1,1,Cauchy,1,1\n", LENGTHS, r"chunk-0-trace\.csv:1: family='Cauchy', shape=1\.0: allowed Gamma"),
        ("0,-1,1,Gamma,1,1\n", LENGTHS, r"chunk-0-trace\.csv:1: begin=0\.0 and rate=-1\.0"),
        ("0,1,1,Gamma,1,1\n", "{", r"chunk-0-dataset\.json:1: not JSON"),
        ("0,1,1,Gamma,1,1\n", {"0": {"input_tokens": "{1: 1}"}}, r"window 0: .*histograms"),
        ("0,1,1,Gamma,1,1\n", {"0": {"input_tokens": "__import__('os')", "output_tokens": "{}"}}, "histograms"),
        ("0,9000,1,Gamma,1,1\n", LENGTHS, r"about 5\.4e\+06 requests, allowed 2000000: ask for a shorter"),
    ],
)
def test_servegen_refuses_corrupt_files(tmp_path: Path, trace: str, lengths: object, reason: str) -> None:
    folder = clients(tmp_path / "m", trace, lengths)
    with pytest.raises(ConversionError, match=reason):
        convert("servegen", folder, ConvertOptions())


def test_mooncake_traces_are_cut_and_brought_to_larger_blocks(tmp_path: Path) -> None:
    path, out = tmp_path / "m.jsonl", tmp_path / "out.jsonl.gz"
    rows = [(0, 1500, (0, 1, 2)), (7000, 1700, (0, 1, 3, 4)), (9000, 1024, (0, 1)), (11000, 1400, (0, 1, 5))]
    write_records(path, [MooncakeRecord(t, n, 5, ids) for t, n, ids in rows])
    found = convert("mooncake", path, ConvertOptions(start_s=5, duration_s=5, max_requests=9))
    assert [r.timestamp_ms for r in found] == [2000, 4000] and found[0].hash_ids == (0, 1, 3, 4)
    assert len(convert("mooncake", path, ConvertOptions(max_requests=3))) == 3
    joined = convert("mooncake", path, ConvertOptions(block_tokens=1024))
    assert [len(r.hash_ids) for r in joined] == [2, 2, 1, 2]
    assert len({r.hash_ids[0] for r in joined}) == 1 and len({r.hash_ids[-1] for r in joined}) == 4
    assert write_records(out, joined) == 4
    assert [r.input_length for r in read_mooncake(out, 1024)] == [1500, 1700, 1024, 1400]
    first = out.read_bytes()
    write_records(out, joined)
    assert out.read_bytes() == first, "no time stamp of the packing in the file"
    sound = path.read_text()
    path.write_text(sound + "{}\n")
    with pytest.raises(ConversionError, match=r"m\.jsonl:5: timestamp=None"):
        convert("mooncake", path, ConvertOptions())
    last = json.loads(sound.splitlines()[0])["hash_ids"][-1]
    write = {"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [2**40, last]}
    path.write_text(sound + json.dumps(write) + "\n")
    with pytest.raises(ConversionError, match=rf"m\.jsonl:5: hash id {last} stands after {2**40}, earlier"):
        convert("mooncake", path, ConvertOptions())


def test_bad_options_and_empty_windows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    with pytest.raises(ConversionError, match="no request from 10 s to 20 s"):
        convert("azure", path, ConvertOptions(start_s=10, duration_s=10))
    with pytest.raises(UnknownNameError, match="did you mean 'azure'"):
        convert("azur", path, ConvertOptions())
    for name in CONVERTERS:
        with pytest.raises(ConversionError, match="missing"):
            convert(name, tmp_path / "missing", ConvertOptions())
    with pytest.raises(ValueError, match="max_requests=0"):
        ConvertOptions(max_requests=0)
    with pytest.raises(ValueError, match="duration_s=0"):
        ConvertOptions(duration_s=0)
    with pytest.raises(ConversionError, match="block_tokens=100"):
        convert("mooncake", path, ConvertOptions(block_tokens=100))


def public(pattern: str) -> Path:
    folder = os.environ.get("PIKV_TRACES")
    found = sorted(Path(folder).rglob(pattern)) if folder else []
    if not found:
        pytest.skip(f"PIKV_TRACES names no folder with {pattern}")
    return found[0]


MOONCAKE = {"requests": (12031, 12031), "input_mean": (12034, 12036), "prefix_hit_rate": (0.38, 0.39)}
AZURE_CONVERSATION = {"requests": (19366, 19366), "input_mean": (1154, 1156), "prefix_hit_rate": (0, 0)}
WEKA = {"input_p50": (5e4, 2e5), "prefix_hit_rate": (0.8, 0.99)}
SERVEGEN = {"rate_per_s": (1.9, 2.1), "prefix_hit_rate": (0, 0)}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "pattern", "options", "expected"),
    [
        ("mooncake", "conversation_trace.jsonl*", {}, MOONCAKE),
        ("azure", "AzureLLMInferenceTrace_conv.csv*", {}, AZURE_CONVERSATION),
        ("weka", "sessions-rle.jsonl*", {"duration_s": 1800.0}, WEKA),
        ("servegen", "m-small.tar.gz", {"start_s": 6e5, "duration_s": 1200.0, "rate_per_s": 2.0}, SERVEGEN),
    ],
)
def test_public_traces(
    name: str, pattern: str, options: dict[str, float], expected: dict[str, tuple[float, float]]
) -> None:
    given = ConvertOptions(**options)  # type: ignore[arg-type]
    found = describe_trace(convert(name, public(pattern), given), given.block_tokens)
    for key, (low, high) in expected.items():
        assert low <= found[key] <= high, f"{key}={found[key]}"
