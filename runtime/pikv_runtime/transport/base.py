"""What the runtime asks of the links between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

PURPOSES = ("decode_query", "prefill_query", "observation", "page_move", "control")
"""What bytes between ranks are counted under."""

Sizes = Sequence[Sequence[int]]


class Transport(Protocol):
    """Messages between ranks, in lockstep: every process makes the same calls in the same order.

    Messages are 1-D uint8 tensors. Receivers derive the sizes of what comes (everything that decides them is
    replicated), so no size travels. `sent_bytes` counts what local ranks sent to other ranks.
    """

    world: int
    """Number of ranks."""
    rank: int
    """The lowest local rank."""
    local_ranks: tuple[int, ...]
    """Ranks that this process plays."""
    sent_bytes: dict[str, int]
    """Bytes sent so far, by purpose."""
    collectives: dict[str, int]
    """Collective operations so far, by the purpose that they were called for."""

    def all_to_all(
        self, outgoing: Sequence[Sequence[Tensor]], incoming_bytes: Sizes, purpose: str
    ) -> list[list[Tensor]]:
        """Exchange one message between every two ranks.

        Args:
            outgoing: `[i][dst]`: what the i-th local rank sends to rank `dst`; may be empty.
            incoming_bytes: `[i][src]`: bytes that the i-th local rank gets from rank `src`.
            purpose: One of `PURPOSES`.

        Returns:
            `[i][src]`: what the i-th local rank got. It may share memory with what was sent.
        """
        ...

    def all_gather(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Give every process every rank's uint8 tensor.

        Args:
            tensors: One for each local rank.
            sizes: Bytes of each rank's tensor, (world,).
        """
        ...

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Overwrite `tensor` in place with rank `src`'s, of the same shape and dtype, and return it."""
        ...

    def recount(self, before: str, after: str, nbytes: int) -> None:
        """Count `nbytes` already sent under `before` as `after`: a message may carry two purposes."""
        ...


class Counters:
    """Byte counters by purpose, shared by all transports."""

    def __init__(self) -> None:
        self.sent_bytes = dict.fromkeys(PURPOSES, 0)
        self.collectives = dict.fromkeys(PURPOSES, 0)

    def recount(self, before: str, after: str, nbytes: int) -> None:
        """Count `nbytes` already sent under `before` as `after`."""
        self.sent_bytes[before] -= nbytes
        self.sent_bytes[after] += nbytes


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate the bytes of tensors, (n,) uint8."""
    flat = [tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors if tensor.numel()]
    if not flat:
        return torch.empty(0, dtype=torch.uint8, device=tensors[0].device if tensors else "cpu")
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def unpack(message: Tensor, parts: Sequence[tuple[Sequence[int], torch.dtype]]) -> list[Tensor]:
    """Split what `pack` made into tensors of the given shapes and dtypes."""
    sizes = [packed_bytes([part]) for part in parts]
    if sum(sizes) != len(message):
        raise ValueError(f"message of {len(message)} bytes, expected {sum(sizes)}: ranks are out of step")
    # clone: a view of a wider dtype must start at a multiple of its size
    return [
        piece.clone().view(dtype).view(*shape)
        for piece, (shape, dtype) in zip(torch.split(message, sizes), parts, strict=True)
    ]


def packed_bytes(parts: Sequence[tuple[Sequence[int], torch.dtype]]) -> int:
    """Bytes of a message of tensors of the given shapes and dtypes."""
    total = 0
    for shape, dtype in parts:
        count = dtype.itemsize
        for extent in shape:
            count *= extent
        total += count
    return total
