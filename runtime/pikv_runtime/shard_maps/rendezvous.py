"""`rendezvous`: every rank bids for every shard by hash, and the highest bid has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pikv_runtime.shard_maps.base import Homes, ShardMap, by_expert

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Rendezvous(ShardMap):
    """Highest random weight (Thaler & Ravishankar 1998) over (expert, layer group): one rank more takes over 1/G of the
    shards, and no shard moves between ranks that stay."""

    kind: ClassVar[str] = "rendezvous"

    def homes(self, ranks: int, experts: int, layer_groups: int) -> Homes:
        """See `ShardMap.homes`."""
        table = np.zeros((experts, layer_groups), np.int8)
        for expert in range(experts):
            for group in range(layer_groups):
                bids = [_mix(_mix(_mix(expert + 1) + group + 1) + rank + 1) for rank in range(ranks)]
                table[expert, group] = int(np.argmax(np.array(bids, np.uint64)))
        return by_expert(table, ranks)


def _mix(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    x = (x * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
