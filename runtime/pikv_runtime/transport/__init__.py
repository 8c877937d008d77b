"""Links between ranks: virtual ranks in one process, or processes over torch.distributed."""

from pikv_runtime.transport.base import PURPOSES, Transport, pack, packed_bytes, unpack
from pikv_runtime.transport.dist import TorchDistTransport
from pikv_runtime.transport.launch import RankFailedError, run_ranks
from pikv_runtime.transport.local import LocalTransport

__all__ = [
    "PURPOSES",
    "LocalTransport",
    "RankFailedError",
    "TorchDistTransport",
    "Transport",
    "pack",
    "packed_bytes",
    "run_ranks",
    "unpack",
]
