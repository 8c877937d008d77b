"""Routers: what orders the pages of a request for one query. One file each, chosen by name.

To add one: write a file with a function `scores`, register it below; the router tests pick it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pikv_runtime.registry import Registry
from pikv_runtime.routers import all as all_pages
from pikv_runtime.routers import centroid, gate


class Scores(Protocol):
    """Scores of every page of several requests, higher is better; only their order and spread matter."""

    def __call__(self, query: Tensor, centroids: Tensor, tags: Tensor, gate: Tensor) -> Tensor:
        """Score pages.

        Args:
            query: (R, H_q, D), one query token per request, rotated as attention sees it.
            centroids: (R, P, H_kv, D) mean keys; zeros for pages not full yet.
            tags: (R, P) integer expert ids, -1 untagged.
            gate: (R, E) predicted gate distribution; arbitrary for routers that do not need it.

        Returns:
            (R, P) fp32.
        """
        ...


@dataclass(frozen=True)
class Router:
    """A router and what it needs to be given."""

    scores: Scores
    needs_gate: bool = False
    """Whether the predicted gate distribution must be computed for it."""


ROUTERS: Registry[Router] = Registry("router")
ROUTERS.add("all", Router(all_pages.scores))
ROUTERS.add("gate", Router(gate.scores, needs_gate=True))
ROUTERS.add("centroid", Router(centroid.scores))
