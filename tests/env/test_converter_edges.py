"""Stamps with and without zones, damaged archives, and what a trace is said to be."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from pikv_env.workloads.converters import CONVERTERS, ConversionError, ConvertOptions, convert
from pikv_env.workloads.mooncake import MooncakeRecord, write_records
from pikv_env.workloads.statistics import describe_trace


def test_azure_stamps_need_no_fraction_where_they_have_a_zone(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    day = "2024-05-10"
    stamps = (f"{day} 00:00:00+00:00", f"{day} 02:00:00.25+02:00", f"{day}T00:00:01Z", f"{day} 00:00:02.5")
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{stamp},9,1\n" for stamp in stamps))
    assert [r.timestamp_ms for r in convert("azure", path, ConvertOptions())] == [0, 250, 1000, 2500]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("mooncake", {"tenants": 3}, "tenants=3: of no use to mooncake, only to azure, servegen"),
        ("azure", {"rate_per_s": 2.0}, "rate_per_s=2.0: of no use to azure, only to servegen"),
        ("servegen", {"session_gap_s": 9.0}, "session_gap_s=9.0: of no use to servegen, only to weka"),
        ("azure", {"tenants": 3, "tenant_tokens": 300}, "tenant_tokens=300: .* at least block_tokens=512"),
        ("azure", {"start_s": float("nan")}, "start_s=nan"),
        ("azure", {"seed": -1}, "seed=-1"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tmp_path: Path, name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(name, tmp_path / "missing", ConvertOptions(**given))


def test_the_folder_of_a_trace_is_made(tmp_path: Path) -> None:
    write_records(tmp_path / "new" / "t.jsonl", [MooncakeRecord(0.0, 600, 5, (1, 2))])
    assert (tmp_path / "new" / "t.jsonl").read_text().startswith('{"timestamp": 0, ')


def test_damaged_archives_are_one_error(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f"{i},{i * i}\n" for i in range(4000)).encode())
    path = tmp_path / "damaged.csv.gz"
    for place in (len(whole) // 2, 12, 11):  # in the data, and in the tables that zlib reads first
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        for name in CONVERTERS:
            with pytest.raises(ConversionError, match="damaged"):
                convert(name, path, ConvertOptions())


def test_a_trace_is_described_by_its_own_stamps_unless_they_are_coarse() -> None:
    fine = [MooncakeRecord(at, 600, 5, (i, i + 100)) for i, at in enumerate((0.0, 100.0, 200.0, 300.0))]
    assert describe_trace(fine, 512)["interarrival_cv"] == pytest.approx(0, abs=1e-9), "even gaps stay even"
    assert describe_trace(fine, 512)["rate_per_s"] == pytest.approx(4 / 0.3)
    assert describe_trace(fine[:1], 512)["rate_per_s"] == 0
    coarse = [MooncakeRecord(3000.0 * (i // 10), 600, 5, (i,)) for i in range(3000)]
    assert 0.8 < describe_trace(coarse, 512)["interarrival_cv"] < 1 < describe_trace(coarse, 512, 0)["interarrival_cv"]
