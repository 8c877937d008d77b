from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from kernel_reference import make_case, poisoned, reference_decode, reference_dense

from pikv_kernels import (
    CODECS,
    PagePayload,
    PagePool,
    attention,
    encode,
    merge_partials,
    paged_decode_attention,
    partial_attention,
)

MIXES = [(codec,) for codec in CODECS] + [("native", "int8"), CODECS]


def assert_decodes(case, expected, rtol=1e-4, atol=2e-5):
    results = paged_decode_attention(*case.args, mass=True)
    assert all(result.dtype == torch.float32 for result in results)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=rtol, atol=atol)


@pytest.mark.parametrize("codecs", MIXES, ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_torch_path_matches_the_reference(codecs, dtype):
    case = make_case(codecs, dtype, rows=4)
    assert_decodes(case, reference_decode(case))


@pytest.mark.parametrize(
    "shape",
    [
        {"query_heads": 6, "heads": 1, "page_tokens": 4, "head_dim": 12},
        {"query_heads": 2, "heads": 2, "page_tokens": 1, "head_dim": 48},
        {"rows": 1, "max_pages": 1},
        {"rows": 2, "max_pages": 9, "page_tokens": 5, "head_dim": 64},
    ],
    ids=str,
)
def test_torch_path_takes_odd_shapes(shape):
    case = make_case(CODECS, **shape)
    assert_decodes(case, reference_decode(case))


@pytest.mark.parametrize("codecs", MIXES, ids="+".join)
def test_what_is_not_read_cannot_matter(codecs):
    case = make_case(codecs, rows=4, seed=3)
    dirty = poisoned(case)
    assert any(torch.isnan(t).any() for p in dirty.pool.payloads.values() for t in p.tensors().values())
    for clean, result in zip(
        paged_decode_attention(*case.args, mass=True),
        paged_decode_attention(*dirty.args, mass=True),
        strict=True,
    ):
        assert torch.equal(clean, result)


def test_rows_that_read_nothing_return_zero_and_minus_infinity():
    case = make_case(rows=3)
    out, lse, mass = paged_decode_attention(*case.args, mass=True)
    assert not out[-1].any()
    assert not mass[-1].any()
    assert (lse[-1] == -math.inf).all()
    torch.testing.assert_close(mass[:-1].sum(1), torch.ones(2))
    nothing = case.page_table[:, :0]
    out, lse, mass = paged_decode_attention(case.q, case.pool, nothing, nothing, case.scale, mass=True)
    assert not out.any()
    assert (lse == -math.inf).all()
    assert mass.shape == (3, 0)
    empty = paged_decode_attention(case.q[:0], case.pool, nothing[:0], nothing[:0], case.scale)
    assert [tuple(x.shape) for x in empty] == [(0, 4, 32), (0, 4)]
    empty_pool = PagePool.of([PagePayload.zeros("int8", 0, 2, 16, 32, torch.float32)])
    unlisted = torch.full_like(case.page_table, -1)
    out, lse = paged_decode_attention(case.q, empty_pool, unlisted, case.tokens_in_page, case.scale)
    assert not out.any()
    assert (lse == -math.inf).all()


def test_inputs_are_left_alone_and_huge_scores_do_not_overflow():
    case = make_case()
    case.q.mul_(1e4)
    before = [case.q.clone(), *(t.clone() for t in case.pool.payloads["native"].tensors().values())]
    assert_decodes(case, reference_decode(case))
    after = [case.q, *case.pool.payloads["native"].tensors().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_slots_may_be_numbered_in_any_order():
    case = make_case(CODECS)
    order = torch.randperm(len(case.pool.slot_row), generator=torch.Generator().manual_seed(1))
    pool = PagePool(case.pool.payloads, case.pool.slot_codec[order], case.pool.slot_row[order])
    moved = torch.argsort(order).int()[case.page_table.clamp(min=0)].masked_fill(case.page_table < 0, -1)
    assert_decodes(dataclasses.replace(case, pool=pool, page_table=moved), reference_decode(case))


@pytest.mark.parametrize("queries,keys", [(1, 9), (5, 5), (4, 11), (7, 3)])
def test_partial_attention_matches_the_reference(queries, keys):
    gen = torch.Generator().manual_seed(queries)
    q = torch.randn(queries, 4, 16, generator=gen)
    k, v = torch.randn(2, keys, 2, 16, generator=gen)
    causal = torch.ones(queries, keys).tril(keys - queries).bool()
    mask = torch.rand(queries, keys, generator=gen) < 0.5
    for argument, seen in ((keys - queries, causal), (mask, mask), (None, torch.ones_like(causal))):
        out, lse = partial_attention(q, k, v, argument, 0.3)
        want_out, want_lse = reference_dense(q, k, v, seen, 0.3)
        torch.testing.assert_close(out.double(), want_out, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-4, atol=1e-5)


def test_partial_attention_in_blocks_equals_one_block(monkeypatch):
    gen = torch.Generator().manual_seed(0)
    q = torch.randn(11, 4, 16, generator=gen).bfloat16()
    k, v = torch.randn(2, 13, 2, 16, generator=gen).bfloat16()
    whole = partial_attention(q, k, v, 2, 0.25)
    monkeypatch.setattr(attention, "_CPU_SCORES_PER_BLOCK", 4 * 13 * 3)
    for a, b in zip(whole, partial_attention(q, k, v, 2, 0.25), strict=True):
        torch.testing.assert_close(a, b)
        assert a.dtype == torch.float32


def test_partial_attention_over_no_keys():
    out, lse = partial_attention(torch.randn(3, 4, 8), torch.empty(0, 2, 8), torch.empty(0, 2, 8), -3, 1.0)
    assert not out.any()
    assert (lse == -math.inf).all()
    out, lse = partial_attention(torch.empty(0, 4, 8), torch.ones(2, 2, 8), torch.ones(2, 2, 8), None, 1.0)
    assert out.shape == (0, 4, 8)
    assert lse.shape == (0, 4)


def test_a_prefill_chunk_merges_from_past_and_own_keys():
    gen = torch.Generator().manual_seed(5)
    q = torch.randn(6, 4, 16, generator=gen)
    k, v = torch.randn(2, 20, 2, 16, generator=gen)
    past = partial_attention(q, k[:14], v[:14], None, 0.25)
    own = partial_attention(q, k[14:], v[14:], 0, 0.25)
    merged = merge_partials(torch.stack((past[0], own[0])), torch.stack((past[1], own[1])))
    for a, b in zip(merged, partial_attention(q, k, v, 14, 0.25), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_mistakes_are_named(monkeypatch):
    case = make_case()
    q, pool, table, tokens, scale = case.args
    with pytest.raises(ValueError, match="multiple of 2 heads"):
        paged_decode_attention(q[:, :3], pool, table, tokens, scale)
    with pytest.raises(ValueError, match="must both be"):
        paged_decode_attention(q, pool, table, tokens[:, :2], scale)
    with pytest.raises(ValueError, match="mask must be bool"):
        partial_attention(q, q, q, torch.ones(2, 2), scale)
    with pytest.raises(ValueError, match="query_heads a multiple"):
        partial_attention(q[:, :3], q[:, :2], q[:, :2], None, scale)
    with pytest.raises(ValueError, match="holds 'native' pages"):
        PagePool({"int8": pool.payloads["native"]}, pool.slot_codec, pool.slot_row)
    with pytest.raises(ValueError, match="differ"):
        PagePool.of([PagePayload.zeros(c, 1, 1, i + 1, 8, torch.float32) for i, c in enumerate(CODECS[:2])])
    with pytest.raises(ValueError, match="one payload per codec"):
        PagePool.of([encode("int8", torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))] * 2)
    with pytest.raises(ValueError, match="at least one payload"):
        PagePool.of([])
    monkeypatch.setenv("PIKV_TRITON", "always")
    with pytest.raises(ValueError, match="auto, off or interpret, got 'always'"):
        paged_decode_attention(*case.args)


def test_the_package_imports_without_triton():
    code = "import sys; sys.modules['triton'] = None; import pikv_kernels; print(len(pikv_kernels.CODECS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "6"
