from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_reference import Case, make_case, reference_decode

from pikv_kernels import CODECS, merge_partials, paged_decode_attention


def split_pages(case: Case, part_of: torch.Tensor, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each part reads the pages given to it by ``part_of (rows, max_pages)``."""
    results = []
    for part in range(parts):
        table = case.page_table.masked_fill(part_of != part, -1)
        results.append(paged_decode_attention(case.q, case.pool, table, case.tokens_in_page, case.scale))
    return torch.stack([out for out, _ in results]), torch.stack([lse for _, lse in results])


@given(st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_any_split_of_the_pages_merges_to_the_whole(parts, seed):
    case = make_case(CODECS, seed=seed, max_pages=6)
    part_of = torch.randint(0, parts, case.page_table.shape, generator=torch.Generator().manual_seed(seed))
    out, lse = merge_partials(*split_pages(case, part_of, parts))
    whole_out, whole_lse, _ = reference_decode(case)
    torch.testing.assert_close(out.double(), whole_out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse.double(), whole_lse, rtol=1e-5, atol=1e-5)


def test_empty_parts_say_nothing_even_if_they_hold_nan():
    outs = torch.tensor([[[math.nan] * 2, [1.0, 2.0]], [[math.nan] * 2, [math.inf] * 2]])
    lses = torch.tensor([[-math.inf, 0.5], [-math.inf, -math.inf]])
    out, lse = merge_partials(outs, lses)
    assert out.tolist() == [[0.0, 0.0], [1.0, 2.0]]
    assert lse.tolist() == [-math.inf, 0.5]


def test_no_parts_at_all():
    out, lse = merge_partials(torch.empty(0, 3, 2), torch.empty(0, 3))
    assert out.tolist() == [[0.0, 0.0]] * 3
    assert lse.tolist() == [-math.inf] * 3


def test_huge_scores_do_not_overflow_and_16_bit_input_is_merged_in_fp32():
    outs = torch.tensor([[[1.0]], [[3.0]]], dtype=torch.bfloat16)
    out, lse = merge_partials(outs, torch.tensor([[1e4], [1e4]]))
    assert out.dtype == lse.dtype == torch.float32
    assert out.item() == pytest.approx(2.0, rel=1e-3)
    assert lse.item() == pytest.approx(1e4 + math.log(2), rel=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="plus a head_dim axis"):
        merge_partials(torch.zeros(2, 3, 4), torch.zeros(2, 4))
