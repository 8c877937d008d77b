"""`expert_home`: consecutive experts share a rank, as their weights do under expert parallelism."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pikv_runtime.shard_maps.base import Homes, ShardMap, by_expert


@dataclass(frozen=True)
class ExpertHome(ShardMap):
    """Expert e of E lives on rank e·G // E, in every layer; with more ranks than experts some ranks stay empty."""

    kind: ClassVar[str] = "expert_home"

    def homes(self, ranks: int, experts: int, layer_groups: int) -> Homes:
        """See `ShardMap.homes`."""
        table = np.arange(experts) * ranks // experts
        return by_expert(np.repeat(table[:, None], layer_groups, axis=1).astype(np.int8), ranks)
