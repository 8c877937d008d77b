"""Read sets, victims and experts, by torch and by the interpreted kernels, against plain sorting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import both

from pikv_kernels import biased_gate, listed, read_set, victims
from pikv_kernels.selection import _best


def best_of(values: list[float], may: list[bool], count: int) -> list[bool]:
    """The `count` highest, ties to the lower index."""
    order = sorted((i for i in range(len(values)) if may[i]), key=lambda i: (-values[i], i))
    return [i in order[:count] for i in range(len(values))]


def some(rows: int, pages: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    score = torch.randn(rows, pages, generator=gen).mul(4).round() / 2  # many ties, both zeros among them
    score[0, ::3] *= -0.0
    candidate = torch.rand(rows, pages, generator=gen) < 0.7
    score[~candidate] = math.nan  # never looked at
    return score, candidate


@both
@pytest.mark.parametrize("fan_out", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("pages", [1, 30, 70])
def test_read_sets_are_the_best_share_of_the_candidates(pages, fan_out):
    score, candidate = some(3, pages, seed=pages)
    candidate[-1] = False
    result = read_set(score, candidate, fan_out)
    assert result.dtype == torch.bool
    for row in range(3):
        may = candidate[row].tolist()
        expected = best_of(score[row].tolist(), may, math.ceil(fan_out * sum(may) - 1e-9))
        assert result[row].tolist() == expected


@both
def test_a_share_of_whole_pages_is_not_rounded_up_by_the_share_being_binary():
    score, candidate = torch.arange(1000.0).view(1, -1), torch.ones(1, 1000, dtype=torch.bool)
    for tenths in (1, 3, 7):
        assert read_set(score, candidate, tenths / 10).sum() == 100 * tenths


@both
def test_bias_is_added_to_normalised_scores():
    gen = torch.Generator().manual_seed(7)
    score, bias = torch.randn(2, 40, generator=gen) * 30 + 100, torch.randn(2, 40, generator=gen)
    candidate = torch.rand(2, 40, generator=gen) < 0.8
    result = read_set(score, candidate, 0.25, bias)
    for row in range(2):
        inside = score[row][candidate[row]].double()
        value = (score[row].double() - inside.mean()) / torch.sqrt(inside.var(correction=0) + 1e-12) + bias[row]
        may = candidate[row].tolist()
        assert result[row].tolist() == best_of(value.tolist(), may, math.ceil(0.25 * sum(may)))
    assert not torch.equal(result, read_set(score, candidate, 0.25))


@both
def test_victims_are_the_lowest_and_at_most_all():
    utility, evictable = some(3, 37, seed=1)
    count = torch.tensor([5, 0, 99], dtype=torch.int32)
    result = victims(utility, evictable, count)
    for row in range(3):
        may = evictable[row].tolist()
        assert result[row].tolist() == best_of((-utility[row]).tolist(), may, int(count[row]))


@both
def test_rows_longer_than_a_tile_are_chosen_and_listed_whole(monkeypatch):
    from pikv_kernels import selection

    if selection.use_triton(torch.zeros(1)):
        from pikv_kernels import triton_selection

        monkeypatch.setattr(triton_selection, "_TILE", 32)
    score, candidate = some(2, 75, seed=3)
    mask = read_set(score, candidate, 0.4)
    may = candidate[1].tolist()
    assert mask[1].tolist() == best_of(score[1].tolist(), may, math.ceil(0.4 * sum(may)))
    table = torch.arange(150, dtype=torch.int32).view(2, 75)
    compact, tokens = listed(mask, table, table % 16 + 1, 40)
    for row in range(2):
        pages = table[row][mask[row]].tolist()
        assert compact[row].tolist() == pages + [-1] * (40 - len(pages))
        assert tokens[row].tolist() == [page % 16 + 1 for page in pages] + [0] * (40 - len(pages))


@both
@pytest.mark.parametrize("width", [2, 9])
def test_a_list_may_be_narrower_or_wider_than_its_table(width):
    mask = torch.tensor([[True, False, True, True, False], [False] * 5])
    table = torch.arange(10, dtype=torch.int32).view(2, 5)
    compact, tokens = listed(mask, table, torch.full_like(table, 3), width)
    assert compact.tolist() == [([0, 2, 3] + [-1] * 9)[:width], [-1] * width]
    assert tokens.tolist() == [([3, 3, 3] + [0] * 9)[:width], [0] * width]


@both
@pytest.mark.parametrize("renormalise", [True, False])
def test_a_biased_gate_chooses_with_bias_and_weighs_without(renormalise):
    gen = torch.Generator().manual_seed(2)
    logits, bias = torch.randn(5, 12, generator=gen).round(decimals=1), torch.randn(12, generator=gen).round()
    weights, experts = biased_gate(logits, bias, 3, renormalise=renormalise)
    softmax = torch.softmax(logits.double(), 1)
    for token in range(5):
        order = sorted(range(12), key=lambda e: (-float(logits[token, e] + bias[e]), e))[:3]
        assert experts[token].tolist() == order
        expected = softmax[token, order]
        expected = expected / expected.sum() if renormalise else expected
        torch.testing.assert_close(weights[token].double(), expected, rtol=1e-5, atol=1e-7)
    plain = biased_gate(logits, torch.zeros(12), 3, renormalise=renormalise)[1]
    assert not torch.equal(plain, experts)


@given(st.integers(0, 10**6), st.integers(1, 50), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_choosing_obeys_quota_and_order(seed, pages, fan_out):
    score, candidate = some(2, pages, seed)
    chosen = read_set(score, candidate, fan_out)
    for row in range(2):
        taken, left = score[row][chosen[row]], score[row][candidate[row] & ~chosen[row]]
        assert chosen[row].sum() == math.ceil(np.float64(fan_out) * int(candidate[row].sum()) - 1e-9)
        assert not (chosen[row] & ~candidate[row]).any()
        assert len(taken) == 0 or len(left) == 0 or taken.min() >= left.max()
    quota = chosen.sum(1)
    assert torch.equal(_best(score.masked_fill(~candidate, -math.inf), candidate, quota), chosen)


def test_mistakes_are_named():
    score, mask = torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"fan_out must be in \[0, 1\], got 1.5"):
        read_set(score, mask, 1.5)
    with pytest.raises(ValueError, match=r"one shape \(rows, pages\), got \[\(2, 4\), \(2, 3\)\]"):
        read_set(score, mask[:, :3], 0.5)
    with pytest.raises(ValueError, match=r"count \(1,\) must be \(2,\)"):
        victims(score, mask, torch.tensor([1]))
    with pytest.raises(ValueError, match="cannot choose 5 experts"):
        biased_gate(score, torch.zeros(4), 5, renormalise=True)
    with pytest.raises(ValueError, match="one shape"):
        listed(mask, score.int(), score.int()[:1], 3)
