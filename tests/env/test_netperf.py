"""Fits of links: made-up tables with known starts and bandwidths are recovered; the shipped profiles reproduce."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pikv_env.netperf.__main__ import dump, main
from pikv_env.netperf.fit import fit_links, fit_scale_out, fit_slowdown, held_out
from pikv_env.netperf.machines import fit_profiles
from pikv_env.netperf.tables import Timings, deepep_timings, nccl_timings, read_rows, row_bytes, send_recv_timings
from pikv_runtime.profiles import load_profile


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def nccl_rows(start_us: float, gb_s: float, ranks: int = 8) -> list[dict]:
    rows = []
    for dtype, size in (("half", 2), ("int8", 1)):
        for power in range(8, 29):
            wire = 2**power * size * (ranks - 1) / ranks
            latency = start_us * 1e-3 + wire / (gb_s * 1e6)
            rows.append({"op_name": "alltoall", "nccl_dtype": dtype, "num_gpus": ranks, "message_size": 2**power,
                         "latency": latency})  # fmt: skip
    return rows


def test_elements_bytes_and_milliseconds_are_read_right(tmp_path):
    write_csv(tmp_path / "t.csv", nccl_rows(10.0, 200.0))
    for link in fit_links(nccl_timings(read_rows(tmp_path, "t"), "alltoall", 8)):
        assert link.operation == "all_to_all" and link.ranks == 8 and link.fit_error < 1e-6
        assert link.start_s == pytest.approx(10e-6, rel=1e-3) and link.byte_s == pytest.approx(1 / 200e9, rel=1e-3)


def test_a_fit_predicts_rows_that_it_never_saw():
    rng = np.random.default_rng(0)
    sizes = np.repeat(2.0 ** np.arange(10, 30), 3)
    seconds = (12e-6 + sizes / 100e9) * rng.lognormal(0, 0.05, len(sizes))
    small, large = fit_links(Timings("all_gather", 4, sizes, seconds))
    out = held_out(sizes)
    assert 0.1 < out.mean() < 0.3
    assert not set(sizes[out]) & set(sizes[~out])
    predicted = np.array([(small if size <= 2**20 else large).seconds(size) for size in sizes[out]])
    assert np.median(np.abs(predicted / seconds[out] - 1)) < 0.08
    assert 0 < small.fit_error < 0.1 and 0 < large.fit_error < 0.1


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="all_gather of 4 ranks: 3 rows"):
        fit_links(Timings("all_gather", 4, np.array([1e3, 1e4, 1e5]), np.ones(3)))


def scale_tables() -> list[Timings]:
    """200 GB/s inside, 40 GB/s between nodes; starts of 10 µs and 4 µs more for every doubling of the nodes."""
    tables = []
    for nodes in (1, 2, 4, 8):
        ranks = 8 * nodes
        sizes = row_bytes("dispatch", 7168) * 8 * np.array([2, 8, 16, 32, 64, 128, 256]) * (ranks - 1) / ranks
        inside = 7 / (ranks - 1)
        start = 10e-6 + 4e-6 * np.log2(nodes)
        tables.append(Timings("dispatch", ranks, sizes, start + sizes * (inside / 200e9 + (1 - inside) / 40e9), nodes))
    return tables


def test_bandwidth_inside_and_between_nodes_is_told_apart():
    scale = fit_scale_out(scale_tables(), 8)
    assert scale.inside_byte_s == pytest.approx(1 / 200e9, rel=1e-3)
    assert scale.outside_byte_s == pytest.approx(1 / 40e9, rel=1e-3)
    measured, beyond = scale.link("dispatch", 8), scale.link("dispatch", 128)
    assert not measured.extrapolated and measured.fit_error < 1e-3
    assert beyond.extrapolated and beyond.fit_error is None and beyond.ranks == 1024
    assert beyond.start_s == pytest.approx(38e-6, rel=1e-3)
    # Figures that a wire 1.25 times slower would give.
    size = 7e6
    share = 7 / 255
    seconds = scale.start_s("dispatch", 32) + size * (share / 200e9 + 1.25 * (1 - share) / 40e9)
    assert fit_slowdown(scale, [("dispatch", 32, size, seconds)]) == pytest.approx(1.25, rel=1e-3)


def test_deepep_rows_count_one_copy_per_expert():
    row = {"node_num": "2", "hidden_size": "7168", "num_token": "128", "num_topk": "8", "dispatch_avg_t_us": "102.1"}
    timings = deepep_timings([row], "dispatch", 2, 8)
    assert timings.ranks == 16 and timings.seconds[0] == pytest.approx(102.1e-6)
    assert timings.sizes[0] == pytest.approx(128 * 8 * (7168 + 224) * 15 / 16)


def test_send_and_receive_is_read_from_the_archive(tmp_path):
    text = "time_stats.send_recv.median,size,devices_per_node\n0.02,2048,1\n0.01,2048,2\n"
    with tarfile.open(tmp_path / "n.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("h100_dgx/send_recv.csv")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    timings = send_recv_timings(tmp_path / "n.tar.gz", "h100_dgx", devices_per_node=1)
    assert timings.seconds.tolist() == [2e-5] and timings.sizes.tolist() == [2048]


def test_missing_tables_are_one_line(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "none.tar.gz"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no table a100_sxm_comm_nccl_2.27.3_nccl_perf.parquet (or .csv)" in error


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_pyarrow_says_what_to_do(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ModuleNotFoundError, match=r"pip install pyarrow, or put the table there as t\.csv"):
        read_rows(tmp_path, "t")


@pytest.mark.parametrize("name", ["h100-nvlink8", "h100-ib-1024"])
def test_a_profile_survives_its_file(tmp_path, name):
    profile = load_profile(name)
    path = tmp_path / f"{name}.json"
    path.write_text(dump(profile), encoding="utf-8")
    assert load_profile(path) == profile


@pytest.mark.shared
@pytest.mark.skipif("PIKV_NETPERF" not in os.environ, reason="PIKV_NETPERF names no 'tables folder:vidur archive'")
def test_the_shipped_profiles_come_from_the_tables():
    tables, vidur = os.environ["PIKV_NETPERF"].split(":")
    for fitted in fit_profiles(tables, vidur):
        shipped = load_profile(fitted.name)
        assert fitted.links == shipped.links and fitted.fit_error == shipped.fit_error
