"""Heuristics with parameters of their own, tuned with the budget that every search has, by hill climbing."""

from __future__ import annotations

import numpy as np

from pikv_agents.rivals.hill_climbing import hill_climbing
from pikv_agents.rivals.space import Axis, Space
from pikv_agents.rivals.trials import Found, Trials

UTILITY_GREEDY = Space(
    controllers={
        "utility_greedy": {
            "target": Axis(0.2, 1.0),
            "int8_error": Axis(0.001, 0.05, log=True),
            "int4_error": Axis(0.01, 0.5, log=True),
            "skew": Axis(1.0, 6.0),
            "queue_gain": Axis(0.0, 1.0),
        }
    },
    rankers=("h2o", "lru"),
    rules={"": {}},
)
T_LRU = Space(
    controllers={"static": {"ratio": Axis(1.0, 4.0), "cached_share": Axis(0.0, 1.0), "r_pressure": Axis(1.0, 4.0)}},
    rankers=("h2o", "lru"),
    rules={"tlru": {"threshold": Axis(0.02, 2.0, log=True), "next_prompt": Axis(1.0, 64.0, log=True)}},
)
"""The block rule's parameters, and under them what a server would set anyway: ratio, share of the cache, demotion."""


def utility_greedy(trials: Trials, rng: np.random.Generator) -> Found:
    """The controller `utility_greedy`, its profile of codecs and its target fitted to the training episodes."""
    return hill_climbing(trials, rng, UTILITY_GREEDY)


def t_lru(trials: Trials, rng: np.random.Generator) -> Found:
    """The block rule `tlru` under a static setting."""
    return hill_climbing(trials, rng, T_LRU)
