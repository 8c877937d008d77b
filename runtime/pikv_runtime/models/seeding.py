"""Shadows of audited requests that start with a prefix hit: their first keys come from the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pikv_runtime.cache import PagedStore, Shadows
from pikv_runtime.models.geometry import Geometry
from pikv_runtime.models.segments import CacheView, Segment
from pikv_runtime.transport import Transport, pack, unpack

I8 = NDArray[np.int64]


def seed_shadows(
    fresh: Sequence[Segment],
    view: CacheView,
    stores: Mapping[int, PagedStore],
    shadows: Shadows,
    transport: Transport,
    geometry: Geometry,
) -> None:
    """Fill the shadows of requests that hit `start` tokens, from the ranks that store them.

    Exact where the hit pages are native; else the best copy there is. Collective: `fresh` is the same
    everywhere.
    """
    if not fresh:
        return
    local, world = transport.local_ranks, transport.world
    page_shape = (geometry.kv_heads, geometry.page_tokens, geometry.head_dim)
    page_bytes = int(np.prod(page_shape)) * geometry.dtype.itemsize

    def wanted(src: int, dst: int) -> list[tuple[Segment, I8, I8]]:
        return [(s, *_pages_on(view, s, src, geometry.page_tokens)) for s in fresh if s.owner == dst]

    def message(src: int, dst: int) -> torch.Tensor:
        keys = [stores[src].gather(ls, view.page_block[s.slot, ps])[0] for s, ls, ps in wanted(src, dst) if len(ls)]
        return pack(keys) if keys else torch.empty(0, dtype=torch.uint8)

    def size(src: int, dst: int) -> int:
        return page_bytes * sum(len(layers) for _, layers, _ in wanted(src, dst))

    received = transport.all_to_all(
        [[message(i, dst) for dst in range(world)] for i in local],
        [[size(src, i) for src in range(world)] for i in local],
        "control",
    )
    for i, messages in zip(local, received, strict=True):
        for src in range(world):
            parts = wanted(src, i)
            shapes = [((len(layers), *page_shape), geometry.dtype) for _, layers, _ in parts]
            for (segment, layers, pages), keys in zip(parts, unpack(messages[src], shapes), strict=True):
                for layer, page, k in zip(layers.tolist(), pages.tolist(), keys, strict=True):
                    shadows.write(
                        segment.slot,
                        layer,
                        page * geometry.page_tokens,
                        k.transpose(0, 1).to(geometry.device),
                    )


def _pages_on(view: CacheView, segment: Segment, rank: int, page_tokens: int) -> tuple[I8, I8]:
    """(layers, pages) of the whole pages before a segment that `rank` stores."""
    count = -(-segment.start // page_tokens)
    blocks = view.page_block[segment.slot, :count]
    live = view.page_live[segment.slot, :count] != 0
    here = live & (view.block_codec[blocks] >= 0) & (view.block_rank[blocks] == rank)
    pages, layers = np.nonzero(here)
    return layers.astype(np.int64), pages.astype(np.int64)
