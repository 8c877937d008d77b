"""`load_aware`: a sealed page goes to the rank with the fewest resident bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pikv_runtime.shard_maps.base import LEAST_LOADED, Homes, ShardMap


@dataclass(frozen=True)
class LoadAware(ShardMap):
    """The ledger decides page by page (`ledger/pages.py`); a page whose owner has least of all stays there."""

    kind: ClassVar[str] = "load_aware"

    def homes(self, ranks: int, experts: int, layer_groups: int) -> Homes:
        """See `ShardMap.homes`."""
        return np.full((ranks, experts + 1, layer_groups), LEAST_LOADED, np.int8)
