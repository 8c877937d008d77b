"""The machines of the shipped hardware profiles: GPU constants with sources, and which tables give their links."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pikv_env.netperf.fit import ScaleOut, fit_links, fit_scale_out, fit_slowdown
from pikv_env.netperf.tables import deepep_timings, nccl_timings, read_rows, row_bytes, send_recv_timings
from pikv_runtime.profiles import Hardware, Link, Profile, load_profile

NCCL_OPERATIONS = ("alltoall", "all_gather", "reduce_scatter", "all_reduce")
DEEPEP = "h100_sxm_comm_sglang_0.5.6.post2_wideep_deepep_ll_perf"
MEASURED_NODES, FARTHER_NODES = (1, 2, 4, 8), (16, 32, 64, 128)
# 128 tokens of hidden size 7168 to 8 experts each, on H800 with 400 Gb/s InfiniBand: µs (dispatch, combine) by ranks,
# from the low-latency table of DeepEP's documentation (github.com/deepseek-ai/DeepEP).
H800_US = {128: (192.0, 369.0), 256: (194.0, 360.0)}

COMMITS = "aiconfigurator at 095f58a, Vidur at 7d47513"
EFFICIENCIES = (
    "memory efficiency and launch time: aiconfigurator's systems files (0.8 of peak, 3 µs a kernel); arithmetic "
    "efficiency: 0.4, the 38-43 % of bf16 peak of arXiv 2407.21783; 10 kernels a layer and 0.9 of memory are our "
    "assumptions; decision: measured for cpu-gloo; host memory: half of the data sheet's two-way PCIe bandwidth, 0.8 "
    "of it reached (our assumption)"
)


@dataclass(frozen=True)
class Machine:
    """One machine of the catalogue."""

    gpu: str
    memory_bytes: float
    read_bytes_s: float
    flops: float
    flops_8bit: float
    sheet: str
    """Where the four numbers come from."""
    table: str
    """NCCL table, without its ending."""
    ranks: tuple[int, ...] = (2, 4, 8)
    host_bytes_s: float = 64e9
    """PCIe 5.0 x16: 128 GB/s both ways together in the data sheets of H100, H200 and B200 systems."""
    vidur: str = ""
    """Folder of Vidur's archive with point-to-point times; empty: none."""

    def hardware(self, most_ranks: int, ranks_per_node: int) -> Hardware:
        """The constants, with the efficiencies that all machines share."""
        return Hardware(
            gpu=self.gpu,
            memory_bytes=self.memory_bytes,
            memory_share=0.9,
            read_bytes_s=self.read_bytes_s,
            read_efficiency=0.8,
            flops=self.flops,
            flops_8bit=self.flops_8bit,
            flops_efficiency=0.4,
            host_bytes_s=self.host_bytes_s,
            host_efficiency=0.8,
            launch_s=3e-6,
            launches_per_layer=10,
            decision_s=load_profile("cpu-gloo").prices_s["decision"],
            ranks_per_node=ranks_per_node,
            most_ranks=most_ranks,
            source=f"{self.sheet}; {EFFICIENCIES}",
        )


GIB = 2.0**30
MACHINES = {
    "a100-nvlink8": Machine(
        "A100 SXM 80GB", 80 * GIB, 2.039e12, 312e12, 312e12, "NVIDIA A100 data sheet (no FP8)",
        "a100_sxm_comm_nccl_2.27.3_nccl_perf",
        host_bytes_s=32e9,  # PCIe 4.0 x16: 64 GB/s both ways together
        vidur="a100_dgx",
    ),
    "h100-nvlink8": Machine(
        "H100 SXM 80GB", 80 * GIB, 3.35e12, 989e12, 1978e12, "NVIDIA H100 data sheet",
        "h100_sxm_comm_nccl_2.29.2_nccl_perf",
        vidur="h100_dgx",
    ),
    "h200-nvlink8": Machine(
        "H200 SXM 141GB", 141e9, 4.8e12, 989e12, 1978e12, "NVIDIA H200 data sheet",
        "h200_sxm_comm_nccl_2.29.2_nccl_perf"
    ),
    "b200-nvlink8": Machine(
        "B200 SXM 180GB", 180 * GIB, 7.7e12, 2250e12, 4500e12, "NVIDIA Blackwell data sheet",
        "b200_sxm_comm_nccl_2.29.2_nccl_perf",
    ),
    "l40s-pcie4": Machine(
        "L40S 48GB", 46068 * 2.0**20, 0.864e12, 362.05e12, 733e12, "NVIDIA L40S data sheet",
        "l40s_comm_nccl_2.27.3_nccl_perf",
        ranks=(2, 4),
        host_bytes_s=32e9,
    ),
}  # fmt: skip


def fit_profiles(tables: str | Path, vidur: str | Path) -> list[Profile]:
    """All shipped hardware profiles.

    Args:
        tables: folder with the aiconfigurator tables (Parquet, or the same as CSV).
        vidur: Vidur's archive of network measurements.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: a table is missing, unreadable or too short.
    """
    profiles = [_node(name, machine, tables, vidur) for name, machine in MACHINES.items()]
    return [*profiles, *_infiniband(tables, vidur)]


def _node(name: str, machine: Machine, tables: str | Path, vidur: str | Path) -> Profile:
    rows = read_rows(tables, machine.table)
    links = [
        link
        for operation in NCCL_OPERATIONS
        for ranks in machine.ranks
        for link in fit_links(nccl_timings(rows, operation, ranks))
    ]
    source = f"links: NCCL, {machine.table} of aiconfigurator"
    if machine.vidur:
        links += fit_links(send_recv_timings(vidur, machine.vidur, devices_per_node=2))
        source += f"; send_recv: {machine.vidur} of Vidur"
    most = max(machine.ranks)
    return _profile(name, source, machine.hardware(most, most), links)


def _infiniband(tables: str | Path, vidur: str | Path) -> list[Profile]:
    """H100 nodes over InfiniBand: as far as it was measured, and beyond."""
    machine = MACHINES["h100-nvlink8"]
    rows, nccl = read_rows(tables, DEEPEP), read_rows(tables, machine.table)
    scale = fit_scale_out(
        [deepep_timings(rows, op, nodes, 8) for op in ("dispatch", "combine") for nodes in MEASURED_NODES], 8
    )
    links = [link for ranks in (2, 4) for link in fit_links(nccl_timings(nccl, "alltoall", ranks))]
    links += [scale.link(op, nodes) for op in ("dispatch", "combine") for nodes in MEASURED_NODES]
    links += fit_links(send_recv_timings(vidur, machine.vidur, devices_per_node=1))
    source = (
        f"links: DeepEP low latency over 1 to 8 nodes, {DEEPEP} of aiconfigurator, one bandwidth inside nodes "
        f"({1e-9 / scale.inside_byte_s:.0f} GB/s) and one between ({1e-9 / scale.outside_byte_s:.0f} GB/s); 2 and 4 "
        f"ranks: NCCL, {machine.table}; send_recv between nodes: {machine.vidur} of Vidur"
    )
    near = _profile("h100-ib-64", source, machine.hardware(64, 8), links)
    slow = fit_slowdown(scale, _published(scale))
    far = [scale.link(op, nodes, slow) for op in ("dispatch", "combine") for nodes in FARTHER_NODES]
    assert near.hardware is not None
    return [
        near,
        replace(
            near,
            name="h100-ib-1024",
            source=f"{near.source}; beyond 64 ranks: starts on a line in log2 of the nodes, the wire between nodes "
            f"{slow:.2f} times slower, from DeepEP's published figures for 128 and 256 H800",
            hardware=replace(near.hardware, most_ranks=1024),
            links=(*near.links, *(_rounded(link) for link in far)),
            extrapolated="everything beyond 64 ranks; nothing was published beyond 256",
        ),
    ]


def _published(scale: ScaleOut) -> list[tuple[str, int, float, float]]:
    figures = []
    for ranks, times in H800_US.items():
        for operation, micros in zip(("dispatch", "combine"), times, strict=True):
            size = row_bytes(operation, 7168) * 128 * 8 * (ranks - 1) / ranks
            figures.append((operation, ranks // scale.ranks_per_node, size, micros * 1e-6))
    return figures


def _profile(name: str, source: str, hardware: Hardware, links: list[Link]) -> Profile:
    """`fit_error` is the median over the links that queries travel by."""
    used = [k.fit_error for k in links if k.operation in ("all_to_all", "dispatch", "combine")]
    return Profile(
        name=name,
        geometry="",
        source=f"python -m pikv_env.netperf; {source} ({COMMITS})",
        date=datetime.date.today().isoformat(),
        fit_error=round(float(np.median([e for e in used if e is not None])), 4),
        hardware=hardware,
        links=tuple(_rounded(link) for link in links),
    )


def _rounded(link: Link) -> Link:
    error = None if link.fit_error is None else round(link.fit_error, 4)
    return replace(link, start_s=_four(link.start_s), byte_s=_four(link.byte_s), fit_error=error)


def _four(value: float) -> float:
    return float(f"{value:.4g}")
