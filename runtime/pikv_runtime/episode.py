"""The start of an episode: a ledger for a workload, and the uncapped exact run that J is relative to."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pikv_runtime import ledger as L
from pikv_runtime.block_rules import Orders
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.ledger.drive import Bank, reference_run
from pikv_runtime.ledger.rule_room import with_orders
from pikv_runtime.objective import Reference
from pikv_runtime.profiles import Geometry
from pikv_runtime.requests import Workload, distinct_blocks


def begin(
    workload: Workload,
    config: RuntimeConfig,
    geometry: Geometry,
    orders: Orders,
    prices: NDArray[np.float64],
    lambdas: tuple[float, float],
    *,
    ranks: int,
    signals: Bank | None = None,
    reference: Reference | None = None,
    pages: int = 0,
) -> tuple[L.Ledger, Reference]:
    """A fresh ledger with the workload's requests, and its reference: U is run on the model clock unless it is given.

    Args:
        workload: whom to serve.
        config: the runtime's configuration.
        geometry: the model's.
        orders: of cached blocks and of pages.
        prices: of the model clock, (len(Price),).
        lambdas: prices of memory and of lost fidelity.
        ranks: how many.
        signals: recorded ones that the run will be fed, or None.
        reference: U of the workload, where it is known.
        pages: least pages of a request that the ledger has room for.
    """
    requests = workload.requests
    pages = max(pages, L.pages_needed(requests, config.page_tokens))
    if signals is not None:
        pages = max(pages, signals.tags.shape[2])
    shape = geometry.shape(config.page_tokens)
    build = partial(
        L.build, shape=shape, classes=workload.classes, requests=len(requests), pages=pages, ranks=ranks
    )  # fmt: skip
    # Without a cap, slots must not be one: neither in U nor here.
    uncapped = replace(config, blocks=distinct_blocks(requests) + config.slots * pages + 1)
    ledger = build(uncapped if config.cap_bytes is None else config, events=True)
    scratch = build(uncapped)
    ledger.prices[0], ledger.lambdas[0] = prices, lambdas
    seed = int(getattr(workload, "seed", 0))
    L.load_requests(ledger, 0, requests, audit_seed=seed, audit_share=config.audit_share)
    ledger = with_orders(ledger, 0, orders)
    bank = signals or Bank.empty(shape.layers, pages)
    return ledger, reference or reference_run(ledger, 0, bank, scratch, most_busy=1.0)
