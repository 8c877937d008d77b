"""Scores of pages, by torch and by the interpreted kernels, against sums written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from implementations import both

from pikv_kernels import CODECS, bound_scores, centroid_scores, decode, encode, key_summaries, page_utility

SHAPES = [(2, 4, 2, 16), (3, 3, 1, 24), (1, 2, 2, 40)]  # rows, query heads, KV heads, channels


def query_and_pages(shape, pages: int = 5):
    rows, query_heads, heads, dim = shape
    gen = torch.Generator().manual_seed(sum(shape))
    low = torch.randn(rows, pages, heads, dim, generator=gen)
    return torch.randn(rows, query_heads, dim, generator=gen), low, low + torch.rand(low.shape, generator=gen)


def by_hand(q, keys_of_head):
    """Mean over query heads; `keys_of_head(row, page, kv head, query)` -> one head's score."""
    rows, query_heads, _ = q.shape
    heads, pages, score = keys_of_head
    result = torch.zeros(rows, pages, dtype=torch.float64)
    for row in range(rows):
        for page in range(pages):
            for h in range(query_heads):
                result[row, page] += score(row, page, h // (query_heads // heads), q[row, h].double()) / query_heads
    return result


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("indexed", [False, True])
def test_centroids_score_by_dot_product(shape, indexed):
    q, means, _ = query_and_pages(shape)
    expected = by_hand(q, (shape[2], 5, lambda row, page, head, x: means[row, page, head].double() @ x))
    if indexed:
        index = torch.arange(shape[0] * 5, dtype=torch.int32).view(-1, 5)
        index[:, 2], expected[:, 2] = -1, 0.0
        spare = torch.full((1, *means.shape[2:]), math.nan)  # a page that no row scores
        result = centroid_scores(q, torch.cat([means.flatten(0, 1), spare]), index)
    else:
        result = centroid_scores(q, means)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("indexed", [False, True])
def test_bounds_score_by_the_best_key_within_them(shape, indexed):
    q, low, high = query_and_pages(shape)

    def best(row, page, head, x):
        return torch.maximum(low[row, page, head].double() * x, high[row, page, head].double() * x).sum()

    expected = by_hand(q, (shape[2], 5, best))
    if indexed:
        index = torch.arange(shape[0] * 5).view(-1, 5).flip(1)
        result = bound_scores(q, low.flatten(0, 1), high.flatten(0, 1), index).flip(1)
    else:
        result = bound_scores(q, low, high)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores_of_16_bit_pages(dtype):
    q, low, high = (x.to(dtype) for x in query_and_pages((2, 4, 2, 16)))
    for result, wide in (
        (centroid_scores(q, low), centroid_scores(q.float(), low.float())),
        (bound_scores(q, low, high), bound_scores(q.float(), low.float(), high.float())),
    ):
        torch.testing.assert_close(result, wide, rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tokens", [5, 16])
def test_summaries_are_of_what_pages_decode_to(codec, tokens):
    gen = torch.Generator().manual_seed(3)
    k = torch.randn(4, 2, tokens, 24, generator=gen) + 2
    payload, rows = encode(codec, k, k), torch.tensor([3, 0, 3], dtype=torch.int32)
    decoded = decode(payload, torch.float64)[0][rows.long()]
    mean, low, high = key_summaries(payload, rows)
    torch.testing.assert_close(mean.double(), decoded.mean(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(low.double(), decoded.amin(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(high.double(), decoded.amax(2), rtol=1e-5, atol=1e-5)


@both
def test_a_bound_is_never_below_any_keys_score():
    gen = torch.Generator().manual_seed(4)
    k, q = torch.randn(6, 2, 16, 32, generator=gen), torch.randn(1, 4, 32, generator=gen)
    _, low, high = key_summaries(encode("native", k, k), torch.arange(6))
    bound = bound_scores(q, low, high, torch.arange(6).view(1, -1))
    exact = torch.einsum("hgd,phtd->phgt", q.view(2, 2, 32), k).amax(3).flatten(1).mean(1)
    assert (bound[0] >= exact - 1e-4).all()


@both
def test_utility_is_the_weighted_sum_of_features():
    gen = torch.Generator().manual_seed(5)
    features, weights = torch.rand(3, 7, 6, generator=gen), torch.randn(6, generator=gen)
    expected = (features.double() * weights.double()).sum(2)
    torch.testing.assert_close(page_utility(features, weights).double(), expected, rtol=1e-5, atol=1e-6)


def test_mistakes_are_named():
    q, means = torch.zeros(2, 4, 8), torch.zeros(2, 3, 2, 8)
    with pytest.raises(ValueError, match=r"\[\(2, 4, 8\), \(2, 3, 3, 8\)\]"):
        centroid_scores(q, torch.zeros(2, 3, 3, 8))
    with pytest.raises(ValueError, match="query_heads a multiple"):
        centroid_scores(q, means.flatten(0, 1), torch.zeros(3, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match="must have one shape"):
        bound_scores(q, means, means[:, :2])
    with pytest.raises(ValueError, match=r"\(2,\) weights do not fit"):
        page_utility(torch.zeros(4, 3), torch.zeros(2))
