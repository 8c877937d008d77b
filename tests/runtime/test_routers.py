"""Routers: one contract for all, and each one's own meaning."""

from __future__ import annotations

import pytest
import torch

from pikv_runtime.registry import UnknownNameError
from pikv_runtime.routers import ROUTERS

ROWS, HEADS, KV_HEADS, DIM, PAGES, EXPERTS = 3, 4, 2, 8, 6, 5


def inputs(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(ROWS, HEADS, DIM, generator=generator)
    centroids = torch.randn(ROWS, PAGES, KV_HEADS, DIM, generator=generator)
    tags = torch.randint(-1, EXPERTS, (ROWS, PAGES), generator=generator)
    gate = torch.rand(ROWS, EXPERTS, generator=generator).softmax(-1)
    return query, centroids, tags, gate


@pytest.mark.parametrize("name", ROUTERS.names())
def test_scores_are_finite_fp32_and_do_not_mix_requests(name):
    scores = ROUTERS[name].scores(*inputs())
    assert scores.shape == (ROWS, PAGES) and scores.dtype == torch.float32 and scores.isfinite().all()
    for row in range(ROWS):
        alone = ROUTERS[name].scores(*(x[row : row + 1] for x in inputs()))
        assert torch.allclose(alone[0], scores[row], atol=1e-6)
    assert ROUTERS[name].scores(*(x[:0] for x in inputs())).shape == (0, PAGES)


def test_centroid_is_the_mean_over_query_heads():
    query, centroids, tags, gate = inputs()
    expected = torch.zeros(ROWS, PAGES)
    for head in range(HEADS):
        kv_head = head // (HEADS // KV_HEADS)
        expected += torch.einsum("rd,rpd->rp", query[:, head], centroids[:, :, kv_head]) / HEADS
    assert torch.allclose(ROUTERS["centroid"].scores(query, centroids, tags, gate), expected, atol=1e-6)


def test_gate_is_the_probability_of_the_tag():
    query, centroids, tags, gate = inputs()
    scores = ROUTERS["gate"].scores(query, centroids, tags, gate)
    for row in range(ROWS):
        for page in range(PAGES):
            tag = int(tags[row, page])
            assert scores[row, page] == (gate[row, tag] if tag >= 0 else 0.0)


def test_unknown_router_names_the_closest():
    with pytest.raises(UnknownNameError, match="did you mean 'centroid'"):
        ROUTERS["centroids"]
