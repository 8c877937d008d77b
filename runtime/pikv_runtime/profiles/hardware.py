"""What a GPU and its links can do, as constants: the ingredients of a profile that prices any geometry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

QUESTION, ANSWER = ("all_to_all", "dispatch"), ("all_to_all", "combine")
"""Operations by which queries go out to other ranks and partial outputs come back: NCCL's, or DeepEP's pair."""


@dataclass(frozen=True)
class Hardware:
    """One GPU, and how many of them a profile covers. Rates are the vendor's; efficiencies say what is reached."""

    gpu: str
    memory_bytes: float
    memory_share: float
    """Share of the memory that weights and KV may use; the rest is the engine's."""
    read_bytes_s: float
    """Peak memory bandwidth, bytes per second."""
    read_efficiency: float
    flops: float
    """Peak dense bf16 operations per second."""
    flops_8bit: float
    """The same for 8-bit weights, where they are not expanded first."""
    flops_efficiency: float
    host_bytes_s: float
    """Peak bandwidth to host memory, bytes per second in one direction."""
    host_efficiency: float
    launch_s: float
    """Fixed part of a kernel, seconds."""
    launches_per_layer: float
    decision_s: float
    """One decision of a policy, on the CPU."""
    ranks_per_node: int
    most_ranks: int
    source: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("gpu", "source") and not value > 0:
                raise ValueError(f"hardware {self.gpu!r}: {field.name}={value}, must be positive")
        for name in ("memory_share", "read_efficiency", "flops_efficiency", "host_efficiency"):
            if getattr(self, name) > 1:
                raise ValueError(f"hardware {self.gpu!r}: {name}={getattr(self, name)}, a share is at most 1")

    def stream_s(self, size: float) -> float:
        """Seconds to read (or write) `size` bytes of device memory."""
        return size / (self.read_bytes_s * self.read_efficiency)

    def host_byte_s(self) -> float:
        """Seconds to move one byte between device and host memory."""
        return 1.0 / (self.host_bytes_s * self.host_efficiency)

    def compute_s(self, operations: float, number_bytes: float = 2.0) -> float:
        """Seconds for `operations` floating-point operations; weights of one byte use the 8-bit rate."""
        return operations / ((self.flops_8bit if number_bytes == 1 else self.flops) * self.flops_efficiency)


@dataclass(frozen=True)
class Link:
    """Seconds of one collective among `ranks` ranks: `start_s` + `byte_s` per byte that leaves a rank."""

    operation: str
    """`all_to_all`, `all_gather`, `reduce_scatter`, `all_reduce` and `send_recv` (NCCL); `dispatch` and `combine`
    (DeepEP, low latency)."""
    ranks: int
    start_s: float
    byte_s: float
    up_to_bytes: float | None = None
    """Messages of at most so many bytes; None: of any size, or larger than the line before."""
    fit_error: float | None = None
    """Median absolute relative error on rows that were not fitted; None: nothing was measured."""
    extrapolated: bool = False

    def __post_init__(self) -> None:
        if self.ranks < 2 or self.start_s < 0 or self.byte_s < 0:
            raise ValueError(
                f"link {self.operation!r}: ranks={self.ranks}, start_s={self.start_s}, byte_s={self.byte_s}; "
                "allowed ranks >= 2 and times >= 0"
            )

    def seconds(self, size: float) -> float:
        """Time of one collective in which each rank sends `size` bytes to others."""
        return self.start_s + self.byte_s * size


def find_link(links: Iterable[Link], operations: Iterable[str], ranks: int, size: float = 0.0) -> Link:
    """The link of one of `operations` for `ranks` ranks and messages of `size` bytes.

    Ranks that were not measured take the next larger number: never too fast.

    Raises:
        ValueError: more ranks than any of the links.
    """
    known = [link for link in links if link.operation in operations]
    enough = [link.ranks for link in known if link.ranks >= ranks]
    if not enough:
        most = max((link.ranks for link in known), default=1)
        raise ValueError(f"ranks={ranks}: links are known for at most {most}")
    lines = sorted((k for k in known if k.ranks == min(enough)), key=lambda k: k.up_to_bytes or float("inf"))
    return next(line for line in lines if line.up_to_bytes is None or size <= line.up_to_bytes)
