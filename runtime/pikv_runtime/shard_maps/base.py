"""What all shard maps share: a name, parameters, and the table that the ledger looks homes up in."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Homes = NDArray[np.int8]

LEAST_LOADED = -1
"""In a table: the rank with the fewest resident bytes when the page is sealed."""
STAY = -2
"""In a table: the page stays with its owner."""


@dataclass(frozen=True)
class ShardMap:
    """Which rank stores a sealed page. Fields are parameters."""

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """The spec that makes this map, without parameters at their default."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return self.kind + (":" if changed else "") + ",".join(changed)

    def homes(self, ranks: int, experts: int, layer_groups: int) -> Homes:
        """Homes (ranks, experts + 1, layer_groups) by page index modulo `ranks`, tag (the last row: untagged) and layer
        group: a rank, `LEAST_LOADED` or `STAY`.

        Raises:
            ValueError: the map cannot serve so many ranks.
        """
        raise NotImplementedError

    @property
    def rebalance(self) -> tuple[int, int, int]:
        """(control intervals between two rebalancings, 0: never; per cent that the busiest rank may be above the mean;
        1: a shard too busy for one rank is kept on two)."""
        return 0, 0, 0


def by_expert(experts: Homes, ranks: int) -> Homes:
    """A table of homes (experts, layer_groups) that do not depend on the page index; untagged pages stay."""
    table = np.full((ranks, experts.shape[0] + 1, experts.shape[1]), STAY, np.int8)
    table[:, :-1] = experts
    return table
