"""Room for what a lane's orders need beyond weights: arrays without size until some lane asks for them.

Most ledgers weigh features and never ask. `with_orders` gives a lane its orders and, where the ledger has no room for
them yet, makes it: a record cannot grow, so it returns another one that shares all other arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.block_rules import CLAIRVOYANT, Orders
from pikv_runtime.ledger.jit import HAVE_NUMBA
from pikv_runtime.ledger.queues import LISTS
from pikv_runtime.ledger.record import record
from pikv_runtime.ledger.reuse import WEIGHTS
from pikv_runtime.ledger.rules import begin_rule
from pikv_runtime.ledger.state import Ledger, Past, RuleParam

Sizes = dict[str, tuple[type[Any], tuple[int, ...]]]


def rule_arrays(lanes: int) -> dict[str, NDArray[Any]]:
    """The arrays of the lanes' orders, as small as they get: every lane weighs features."""
    arrays: dict[str, NDArray[Any]] = {
        "block_rule": np.zeros(lanes, np.int8),
        "page_rule": np.zeros(lanes, np.int8),
        "rule_params": np.zeros((lanes, len(RuleParam))),
        "queue_hand": np.full(lanes, -1, np.int32),
        "queue_target": np.zeros(lanes),
    }
    for sizes in _optional(lanes, 0, 0, (0, 0, 0, 0)).values():
        arrays |= {name: np.zeros(shape, dtype) for name, (dtype, shape) in sizes.items()}
    return arrays


def _optional(n: int, blocks: int, requests: int, pages: tuple[int, int, int, int]) -> dict[str, Sizes]:
    """Types and shapes of the arrays without size, by what needs them; `pages` are those of `page_live`."""
    nodes = 2 * blocks + LISTS if blocks else 0
    buckets = 1 << max(4, (2 * blocks - 1).bit_length()) if blocks else 0
    _, slots, _, width = pages
    return {
        "queues": {
            **{f"queue_{name}": (np.int32, (n, nodes)) for name in ("next", "prev")},
            **{f"queue_{name}": (np.int8, (n, nodes)) for name in ("of", "seen")},
            "queue_size": (np.int32, (n, LISTS if blocks else 0)),
            "ghost_key": (np.int64, (n, blocks)),
            "ghost_chain": (np.int32, (n, blocks)),
            "ghost_bucket": (np.int32, (n, buckets)),
        },
        "past": {"block_past": (np.float64, (n, blocks, len(Past) if blocks else 0))},
        "network": {"rule_weights": (np.float32, (n, WEIGHTS if blocks else 0))},
        "uses": {"req_next": (np.int32, (n, requests, width))},
        "attention": {"page_future": (np.float32, (n, *pages[1:])), "page_foreseen": (np.int32, (n, slots))},
    }


def widened(s: Ledger, needs: frozenset[str]) -> Ledger:
    """`s` with room for `needs`: `s` itself where it has it already."""
    lanes, blocks = s.block_cached.shape
    sizes = _optional(lanes, blocks, s.req_hashes.shape[1], s.page_live.shape)
    missing = {
        name: np.zeros(shape, dtype)
        for need in needs
        for name, (dtype, shape) in sizes[need].items()
        if getattr(s, name).shape != shape
    }
    if not missing:
        return s
    grown = s._replace(**missing)  # type: ignore[arg-type]
    return grown if HAVE_NUMBA else record(grown)


def optional_arrays() -> dict[str, str]:
    """Names of the arrays that have no size where no lane needs them, and what needs them."""
    return {name: need for need, sizes in _optional(1, 0, 0, (1, 0, 0, 0)).items() for name in sizes}


def needs_of(lane: Mapping[str, NDArray[Any]]) -> frozenset[str]:
    """What the saved arrays of one lane need room for."""
    return frozenset(need for name, need in optional_arrays().items() if name in lane and lane[name].size > 0)


def with_orders(s: Ledger, lane: int, orders: Orders) -> Ledger:
    """`s` with lane `lane` under `orders`, begun anew: what is cached joins oldest first, nothing else is remembered.

    The requests must be loaded: offline rules look at them. The ledger returned shares its arrays with `s`, which is
    not to be used any more where it is another one.
    """
    s = widened(s, orders.needs)
    rule = orders.block
    s.block_rule[lane], s.page_rule[lane] = rule.code, int(orders.page == CLAIRVOYANT)
    s.rule_params[lane] = rule.params()
    network = rule.network()
    if network is not None:
        s.rule_weights[lane] = network
    if "uses" in orders.needs:
        s.req_next[lane] = next_uses(s, lane)
    if "attention" in orders.needs:
        s.page_foreseen[lane] = 0
    begin_rule(s, lane)
    return s


def next_uses(s: Ledger, lane: int) -> NDArray[np.int32]:
    """Number of the next request of lane `lane` that looks up the same block, (N, P); -1 where there is none."""
    count, (_, width) = int(s.num_requests[lane]), s.req_hashes.shape[1:]
    found = np.full(s.req_hashes.shape[1:], -1, np.int32)
    hashes = np.asarray(s.req_hashes[lane, :count])
    looked_up = (np.asarray(s.req_prompt[lane, :count], np.int64) - 1) // s.page_tokens
    for depth in range(min(width, int(looked_up.max(initial=0)))):
        users = np.flatnonzero((looked_up > depth) & (hashes[:, depth] != 0))
        every = np.flatnonzero(hashes[:, depth] != 0)  # whose output made the block: it may be looked up later
        order = every[np.lexsort((every, hashes[every, depth]))]
        # Positions of users in this order; the nearest one at or after each place, then the one strictly after.
        places = np.where(np.isin(order, users), np.arange(len(order)), len(order))
        nearest = np.minimum.accumulate(places[::-1])[::-1]
        later = np.append(nearest[1:], len(order))
        reached = later < len(order)
        reached[reached] = hashes[order[later[reached]], depth] == hashes[order[reached], depth]
        found[order[reached], depth] = order[later[reached]]
    return found
