"""Virtual ranks: one process plays all of them; nothing is copied, bytes are counted all the same."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pikv_runtime.transport.base import Counters, Sizes


class LocalTransport(Counters):
    """All ranks in this process."""

    def __init__(self, ranks: int = 1) -> None:
        if ranks < 1:
            raise ValueError(f"ranks={ranks}: must be at least 1")
        super().__init__()
        self.world = ranks
        self.rank = 0
        self.local_ranks = tuple(range(ranks))

    def all_to_all(
        self, outgoing: Sequence[Sequence[Tensor]], incoming_bytes: Sizes, purpose: str
    ) -> list[list[Tensor]]:
        """Hand every message over; see `Transport.all_to_all`."""
        self.collectives[purpose] += 1
        for src, messages in enumerate(outgoing):
            for dst, message in enumerate(messages):
                if message.nbytes != incoming_bytes[dst][src]:
                    raise ValueError(
                        f"rank {src} sends {message.nbytes} bytes to rank {dst}, "
                        f"which expects {incoming_bytes[dst][src]}"
                    )
                if src != dst:
                    self.sent_bytes[purpose] += message.nbytes
        return [[outgoing[src][dst] for src in range(self.world)] for dst in range(self.world)]

    def all_gather(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """All ranks' tensors; see `Transport.all_gather`."""
        self.collectives["control"] += 1
        self.sent_bytes["control"] += (self.world - 1) * sum(sizes)
        return list(tensors)

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """The tensor itself: every virtual rank reads the same memory."""
        self.collectives["control"] += 1
        self.sent_bytes["control"] += (self.world - 1) * tensor.nbytes
        return tensor
