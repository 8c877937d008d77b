"""Rankers: vectors of the contract's page-utility weights; the page of lowest utility goes first."""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import BLOCK_WEIGHTS, PAGE_WEIGHTS, Array, Control
from pikv_runtime.registry import Registry

__all__ = ["BLOCK_DEFAULT", "RANKERS", "apply_ranker", "ranker_weights"]

RANKERS: Registry[tuple[float, ...]] = Registry("ranker")
"""Page weights by name, in the contract's order: recency, frequency, mass, mass_sum, position, class."""

RANKERS.add("lru", (1.0, 0.0, 0.0, 0.0, 0.0, 0.0))
RANKERS.add("lfu", (0.0, 1.0, 0.0, 0.0, 0.0, 0.0))
# H2O keeps the pages with the most accumulated attention mass.
RANKERS.add("h2o", (0.0, 0.0, 0.0, 1.0, 0.0, 0.0))
# StreamingLLM keeps sinks and the recent window: sinks are always on, so the oldest of the rest go first.
RANKERS.add("streaming_llm", (0.0, 0.0, 0.0, 0.0, 1.0, 0.0))

# Offline, in the trace environment alone: least attention still to come first. Where nobody foresees it, these weights.
RANKERS.add("clairvoyant", RANKERS["h2o"])

BLOCK_DEFAULT = (1.0, 0.0, 0.1, 0.0, 0.0, 0.0)
"""Block weights of every ranker: LRU. The little depth breaks ties deepest first: a chain without its head is
useless."""


def ranker_weights(name: str) -> Array:
    """The twelve weights (page, then block) of a ranker; raises UnknownNameError."""
    return np.array(RANKERS[name] + BLOCK_DEFAULT, np.float32)


def apply_ranker(name: str, control: Control) -> None:
    """Write a ranker's page and block weights into `control`; raises UnknownNameError."""
    control.globals[PAGE_WEIGHTS] = RANKERS[name]
    control.globals[BLOCK_WEIGHTS] = BLOCK_DEFAULT
