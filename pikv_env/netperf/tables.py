"""Published timings of collectives, as (bytes that leave a rank, seconds) rows.

Two sources are read: the tables of aiconfigurator (github.com/ai-dynamo/aiconfigurator, Apache-2.0: NCCL and DeepEP,
Parquet) and those of Vidur (github.com/microsoft/vidur, MIT: send and receive, CSV in an archive).
"""

from __future__ import annotations

import csv
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]
Rows = list[dict[str, str]]

NUMBER_BYTES = {"half": 2, "int8": 1}  # nccl_dtype; message sizes are in elements
WIRE_SHARE = {"alltoall": 1, "all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}
"""How often the share (n - 1) / n of a message leaves a rank, by NCCL operation."""
FP8_GROUP = 128  # DeepEP's dispatch sends fp8 numbers and one fp32 scale for so many


@dataclass(frozen=True)
class Timings:
    """Measured times of one collective among `ranks` ranks."""

    operation: str
    ranks: int
    sizes: F8
    """(n,) bytes that leave a rank."""
    seconds: F8
    """(n,)"""
    nodes: int = 1


def read_rows(folder: str | Path, stem: str) -> Rows:
    """A table as rows of text, from `stem.csv` or else `stem.parquet`.

    Raises:
        FileNotFoundError: there is neither.
        ModuleNotFoundError: Parquet needs pyarrow, which is not a dependency.
    """
    folder = Path(folder)
    if (path := folder / f"{stem}.csv").exists():
        return list(csv.DictReader(path.read_text().splitlines()))
    if not (path := folder / f"{stem}.parquet").exists():
        raise FileNotFoundError(f"no table {stem}.parquet (or .csv) in {folder}")
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path.name} is Parquet: pip install pyarrow, or put the table there as {stem}.csv"
        ) from None
    return [{key: str(value) for key, value in row.items()} for row in parquet.read_table(path).to_pylist()]


def nccl_timings(rows: Rows, operation: str, ranks: int) -> Timings:
    """NCCL's `operation` (aiconfigurator's name for it): message sizes in elements, milliseconds."""
    kept = [r for r in rows if r["op_name"] == operation and int(r["num_gpus"]) == ranks]
    if not kept:
        raise ValueError(f"the table has no {operation!r} of {ranks} ranks")
    share = WIRE_SHARE[operation] * (ranks - 1) / ranks
    sizes = [int(r["message_size"]) * NUMBER_BYTES[r["nccl_dtype"]] * share for r in kept]
    name = "all_to_all" if operation == "alltoall" else operation
    return Timings(name, ranks, np.array(sizes), np.array([float(r["latency"]) * 1e-3 for r in kept]))


def deepep_timings(rows: Rows, operation: str, nodes: int, ranks_per_node: int) -> Timings:
    """DeepEP's low-latency `dispatch` or `combine`: one copy of a token per chosen expert; microseconds."""
    kept = [r for r in rows if int(r["node_num"]) == nodes]
    if not kept:
        raise ValueError(f"the table has no {operation!r} over {nodes} nodes")
    ranks = nodes * ranks_per_node
    sizes = [row_bytes(operation, int(r["hidden_size"])) * int(r["num_token"]) * int(r["num_topk"]) for r in kept]
    seconds = [float(r[f"{operation}_avg_t_us"]) * 1e-6 for r in kept]
    return Timings(operation, ranks, np.array(sizes) * (ranks - 1) / ranks, np.array(seconds), nodes)


def row_bytes(operation: str, hidden: int) -> float:
    """Bytes of one token's hidden state on DeepEP's wire: fp8 with scales out, bf16 back."""
    return hidden + 4 * hidden / FP8_GROUP if operation == "dispatch" else 2.0 * hidden


def send_recv_timings(archive: str | Path, machine: str, devices_per_node: int) -> Timings:
    """Vidur's point-to-point times between two GPUs of one node (2 devices) or of two (1 device); milliseconds."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"{machine}/send_recv.csv")
        assert file is not None
        rows = list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")))
    kept = [r for r in rows if int(r["devices_per_node"]) == devices_per_node]
    sizes = np.array([float(r["size"]) for r in kept])
    return Timings("send_recv", 2, sizes, np.array([float(r["time_stats.send_recv.median"]) for r in kept]) * 1e-3)
