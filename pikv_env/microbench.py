"""Micro-benchmarks of single prices: page reads, page selection, encoding, links between processes, copies to host
memory, decisions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pikv_kernels import PagePool, encode, paged_decode_attention, reencode
from pikv_runtime.cache import PagedStore
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, Telemetry, clip_control
from pikv_runtime.controllers import make_policy
from pikv_runtime.ledger.readset import select
from pikv_runtime.ledger.state import CODECS
from pikv_runtime.profiles import Geometry
from pikv_runtime.routers import ROUTERS
from pikv_runtime.transport import run_ranks

ROWS = 4  # decoding requests at a time
FEW, MANY = 16, 80  # pages per request; prices are slopes between the two
HEURISTIC = "pressure_proportional/h2o"
SMALL_BYTES, LARGE_BYTES = 1 << 8, 1 << 21

Clock = Callable[[], float]


def fastest(work: Callable[[], Any], now: Clock, repeats: int = 15) -> float:
    """Seconds of one call: the lower quartile of `repeats`, so that interruptions do not count."""
    spans = []
    for _ in range(repeats + 1):
        start = now()
        work()
        spans.append(now() - start)
    return float(np.quantile(spans[1:], 0.25))


def _slope(cost: Callable[[int], float], per_page: int) -> float:
    return max(1e-9, (cost(MANY) - cost(FEW)) / ((MANY - FEW) * per_page))


def _pages(g: Geometry, count: int, page_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of random pages, in the widths that the geometry stores."""
    generator, (heads, k_dim, v_dim) = torch.Generator().manual_seed(0), g.page_dims
    k = torch.randn(count, heads, page_tokens, k_dim, generator=generator)
    return k, k if v_dim == k_dim else torch.randn(count, heads, page_tokens, v_dim, generator=generator)


def read_price(codec: str, g: Geometry, page_tokens: int, now: Clock) -> float:
    """Seconds to read one more page of one layer stored as `codec`."""
    q_dim, v_dim = g.read_dims
    q = torch.randn(ROWS, g.query_heads, q_dim)

    def cost(pages: int) -> float:
        count = ROWS * pages
        pool = PagePool.of([encode(codec, *_pages(g, count, page_tokens))], v_dim if g.latent else 0)
        table = torch.arange(count, dtype=torch.int32).view(ROWS, pages)
        full = torch.full_like(table, page_tokens)
        return fastest(lambda: paged_decode_attention(q, pool, table, full, q_dim**-0.5), now)

    return _slope(cost, ROWS)


def select_price(g: Geometry, router: str, now: Clock) -> float:
    """Seconds to score and choose among one more candidate page of one layer."""
    query, scores = torch.randn(ROWS, g.query_heads, g.read_dims[0]), ROUTERS[router].scores

    def cost(pages: int) -> float:
        centroids = torch.randn(ROWS, pages, *g.page_dims[:2])
        tags, gate = torch.zeros(ROWS, pages, dtype=torch.int64), torch.rand(ROWS, g.experts)
        every, none = np.ones(pages, np.int8), np.zeros(pages, np.int8)
        bias = np.zeros(pages, np.float32)

        def work() -> None:
            for row in scores(query, centroids, tags, gate).numpy():
                select(np.ascontiguousarray(row, np.float32), every, none, bias, 0.25)

        return fastest(work, now)

    return _slope(cost, ROWS)


def encode_price(g: Geometry, page_tokens: int, now: Clock) -> float:
    """Mean seconds to take one page of one layer one rung down the ladder."""
    kv = _pages(g, MANY, page_tokens)
    total = 0.0
    for before, after in itertools.pairwise(CODECS):
        pages = encode(before, *kv)
        total += fastest(lambda pages=pages, after=after: reencode(pages, after), now)  # type: ignore[misc]
    return total / (len(CODECS) - 1) / MANY


def decision_price(g: Geometry, now: Clock) -> float:
    """Seconds of one decision of a heuristic, clipping included."""
    groups = g.experts * min(g.layers, RuntimeConfig().layer_groups)
    policy, telemetry, out = make_policy(HEURISTIC), Telemetry.zeros(groups), Control.neutral(groups)

    def work() -> None:
        for _ in range(20):
            policy.decide(telemetry, out)
            clip_control(out)

    return fastest(work, now) / 20


def host_price(g: Geometry, page_tokens: int, device: torch.device) -> float:
    """Seconds per byte to move pages between the device and host memory, mean of out and back."""
    heads, k_dim, v_dim = g.page_dims
    v_from_k = g.read_dims[1] if g.latent else 0
    store = PagedStore(1, heads, k_dim, page_tokens, torch.float32, MANY, device, v_dim, v_from_k)
    blocks = np.arange(MANY, dtype=np.int32)
    store.open(0, blocks)

    def there_and_back() -> None:
        store.swap_out(0, blocks)
        store.swap_in(0, blocks)

    # Wall time: where the device is a GPU, the copies do not take the process's own.
    return fastest(there_and_back, time.perf_counter) / (2 * MANY * store.page_bytes(0))


def link_prices(timeout_s: float = 20.0) -> tuple[float, float]:
    """(seconds to start one collective, seconds per byte that a rank sends), gloo between two processes."""
    slowest = np.max([found["seconds"] for found in run_ranks(_exchange, 2, timeout_s=timeout_s)], axis=0)
    start, large = float(slowest[0]), float(slowest[1])
    return start, max(1e-13, (large - start) / (LARGE_BYTES - SMALL_BYTES))


def _exchange(rank: int, world: int) -> dict[str, NDArray[np.float64]]:
    """Seconds of one small and one large exchange, from a rank's own view."""
    import torch.distributed as dist

    seconds = []
    for size, repeats in ((SMALL_BYTES, 200), (LARGE_BYTES, 24)):
        splits = [0 if other == rank else size for other in range(world)]
        sent, received = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
        dist.barrier()
        spans = []
        for _ in range(repeats):
            start = time.perf_counter()
            dist.all_to_all_single(received, sent, splits, splits)
            spans.append(time.perf_counter() - start)
        seconds.append(float(np.quantile(spans[2:], 0.25)))
    return {"seconds": np.array(seconds)}
