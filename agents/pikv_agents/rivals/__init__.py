"""Rivals by search: settings found on training episodes, each with the same budget of control intervals.

To add one: a file with a function `(Trials, Generator) -> Found`, and a line in `SEARCHES`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pikv_agents.rivals.cma_es import cma_es
from pikv_agents.rivals.hill_climbing import hill_climbing
from pikv_agents.rivals.linucb import linucb
from pikv_agents.rivals.own_parameters import t_lru, utility_greedy
from pikv_agents.rivals.random_search import random_search
from pikv_agents.rivals.trials import BudgetError, Found, Trials
from pikv_runtime.registry import Registry

__all__ = ["SEARCHES", "BudgetError", "Found", "Search", "Trials"]

Search = Callable[[Trials, np.random.Generator], Found]

SEARCHES: Registry[Search] = Registry("rival by search")
SEARCHES.add("random_search", random_search)
SEARCHES.add("cma_es", cma_es)
SEARCHES.add("hill_climbing", hill_climbing)
SEARCHES.add("linucb", linucb)
SEARCHES.add("utility_greedy", utility_greedy)
SEARCHES.add("t_lru", t_lru)
