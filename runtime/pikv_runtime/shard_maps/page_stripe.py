"""`page_stripe`: pages are dealt to ranks in turn, as decode context parallelism (DCP) deals tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pikv_runtime.shard_maps.base import Homes, ShardMap


@dataclass(frozen=True)
class PageStripe(ShardMap):
    """Page p of a request lives on rank p mod G, whatever its tag: even, and every query asks every rank."""

    kind: ClassVar[str] = "page_stripe"

    def homes(self, ranks: int, experts: int, layer_groups: int) -> Homes:
        """See `ShardMap.homes`."""
        turn = np.arange(ranks, dtype=np.int8)[:, None, None]
        return np.broadcast_to(turn, (ranks, experts + 1, layer_groups)).copy()
