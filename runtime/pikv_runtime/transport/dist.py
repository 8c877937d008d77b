"""Ranks in processes of their own, over torch.distributed (gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pikv_runtime.transport.base import Counters, Sizes, pack


class TorchDistTransport(Counters):
    """One rank of an initialised process group. Only typed tensors travel, never pickles."""

    def __init__(self, device: torch.device | str = "cpu", timeout_s: float = 120.0) -> None:
        if not dist.is_initialized():
            raise ValueError("torch.distributed is not initialised: call init_process_group first")
        super().__init__()
        self.world = dist.get_world_size()
        self.rank = dist.get_rank()
        self.local_ranks: tuple[int, ...] = (self.rank,)
        self._device = torch.device(device)
        # A group of its own: a rank that dies must fail the others' next collective, not hang them.
        self._group = dist.new_group(timeout=timedelta(seconds=timeout_s))

    def all_to_all(
        self, outgoing: Sequence[Sequence[Tensor]], incoming_bytes: Sizes, purpose: str
    ) -> list[list[Tensor]]:
        """One `all_to_all_single` with uneven splits; see `Transport.all_to_all`."""
        messages, expected = outgoing[0], list(incoming_bytes[0])
        sizes = [message.nbytes for message in messages]
        self.sent_bytes[purpose] += sum(sizes) - sizes[self.rank]
        self.collectives[purpose] += 1
        received = torch.empty(sum(expected), dtype=torch.uint8, device=self._device)
        dist.all_to_all_single(received, pack(messages).to(self._device), expected, sizes, group=self._group)
        return [list(torch.split(received, expected))]

    def all_gather(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """As an all-to-all of equal messages, which allows uneven sizes; see `Transport.all_gather`."""
        return self.all_to_all([[tensors[0]] * self.world], [sizes], "control")[0]

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Overwrite `tensor` with rank `src`'s; see `Transport.broadcast`."""
        self.collectives["control"] += 1
        if self.rank == src:
            self.sent_bytes["control"] += (self.world - 1) * tensor.nbytes
        buffer = tensor.to(self._device)  # the tensor itself where it is on the links' device
        dist.broadcast(buffer, src=src, group=self._group)
        return tensor.copy_(buffer)
