"""`shard_eplb`: experts' shards move to other ranks when observed reads are out of balance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pikv_runtime.shard_maps.base import Homes, ShardMap
from pikv_runtime.shard_maps.expert_home import ExpertHome


@dataclass(frozen=True)
class ShardEplb(ShardMap):
    """Begins as `expert_home`. Every `every` control intervals shards (expert × layer group) leave the busiest rank for
    the idlest until it is at most `margin` per cent above the mean, and their pages follow (`ledger/balance.py`).

    After DeepSeek's expert parallelism load balancer, applied to KV instead of weights; what moves is paid for.
    """

    kind: ClassVar[str] = "shard_eplb"
    every: int = 8
    """Control intervals between two rebalancings."""
    margin: int = 10
    """Per cent that the busiest rank's load may be above the mean."""
    copies: bool = False
    """Whether a shard that alone keeps its rank above the margin is kept on a second rank, too; requests take turns."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"shard_eplb: every={self.every}: must be at least 1")
        if not 0 <= self.margin <= 1000:
            raise ValueError(f"shard_eplb: margin={self.margin}: allowed 0 to 1000 per cent")

    def homes(self, ranks: int, experts: int, layer_groups: int) -> Homes:
        """See `ShardMap.homes`."""
        return ExpertHome().homes(ranks, experts, layer_groups)

    @property
    def rebalance(self) -> tuple[int, int, int]:
        """See `ShardMap.rebalance`."""
        return self.every, self.margin, int(self.copies)
