from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pikv_kernels import (
    CODECS,
    PagePayload,
    codec_error,
    decode,
    encode,
    page_bytes,
    payload_fields,
    reencode,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 17), st.sampled_from((4, 16, 32, 36, 48, 64)))
codecs = st.sampled_from(CODECS)
seeds = st.integers(0, 2**31)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def random_pages(shape: tuple[int, ...], seed: int, spread: float = 1.0, offset: float = 0.0):
    gen = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(shape, generator=gen) * spread + offset for _ in range(2))
    return k, v


def assert_same(a: PagePayload, b: PagePayload) -> None:
    assert a.codec == b.codec
    assert a.tensors().keys() == b.tensors().keys()
    for name, tensor in a.tensors().items():
        other = b.tensors()[name]
        assert tensor.dtype == other.dtype
        assert torch.equal(tensor, other), name


@given(codecs, shapes, seeds, st.sampled_from(DTYPES))
@quick
def test_bytes_round_trip_exactly_and_are_counted_exactly(codec, shape, seed, dtype):
    k, v = random_pages(shape, seed)
    payload = encode(codec, k.to(dtype), v.to(dtype))
    pages, *page_shape = shape
    width = page_bytes(codec, *page_shape, dtype)
    flat = payload.to_bytes()
    assert flat.shape == (pages, width)
    assert flat.dtype == torch.uint8
    assert payload.nbytes == pages * width
    assert encode(codec, k[:1].to(dtype), v[:1].to(dtype)).nbytes == width
    assert_same(PagePayload.from_bytes(flat, codec, *page_shape, dtype), payload)
    pool = torch.full((pages, width + 7), 255, dtype=torch.uint8)
    pool[:, :width] = flat
    assert_same(PagePayload.from_bytes(pool, codec, *page_shape, dtype), payload)


@given(codecs, shapes, seeds)
@quick
def test_pages_are_independent_and_described_by_their_fields(codec, shape, seed):
    k, v = random_pages(shape, seed)
    payload = encode(codec, k, v)
    pages, heads, page_tokens, head_dim = shape
    assert (payload.pages, payload.heads, payload.page_tokens, payload.head_dim) == shape
    fields = payload_fields(codec, heads, page_tokens, head_dim, torch.float32)
    assert [(f.name, f.dtype, (pages, *f.shape)) for f in fields] == [
        (name, t.dtype, tuple(t.shape)) for name, t in payload.tensors().items()
    ]
    indices = torch.randint(0, pages, (5,), generator=torch.Generator().manual_seed(seed))
    assert_same(payload.select(indices), encode(codec, k[indices], v[indices]))
    pool = PagePayload.zeros(codec, pages + 2, heads, page_tokens, head_dim, torch.float32)
    pool.put(torch.arange(pages) + 2, payload)
    assert_same(pool.select(torch.arange(pages) + 2), payload)
    assert all(not tensor[:2].any() for tensor in pool.tensors().values())


@given(
    st.sampled_from(("int8", "int4", "int2")),
    shapes,
    seeds,
    st.sampled_from((1e-4, 1e-2, 1.0, 300.0)),
    st.floats(-100, 100),
)
@quick
def test_integer_codes_are_off_by_at_most_half_a_scale(codec, shape, seed, spread, offset):
    k, v = random_pages(shape, seed, spread, offset)
    payload = encode(codec, k, v)
    k_back, v_back = decode(payload, torch.float32)
    rounding = 2e-6 * max(spread, abs(offset))
    k_bound = payload.k_scale.float().unsqueeze(2) / 2 + rounding
    groups = payload.v_scale.shape[3]
    v_bound = payload.v_scale.float().repeat_interleave(shape[3] // groups, dim=3) / 2 + rounding
    assert ((k - k_back).abs() <= k_bound).all()
    assert ((v - v_back).abs() <= v_bound).all()


@given(st.integers(1, 5), st.integers(1, 9), seeds)
@quick
def test_int4_holds_the_halves_of_a_head_in_low_and_high_nibbles(tokens, half, seed):
    k, v = random_pages((1, 1, tokens, 2 * half), seed)
    payload = encode("int4", k, v)
    codes = torch.cat((payload.k & 15, payload.k // 16), dim=-1).float()
    expected = codes * payload.k_scale.float().unsqueeze(2) + payload.k_zero.float().unsqueeze(2)
    torch.testing.assert_close(decode(payload, torch.float32)[0], expected)
    assert payload.k.shape[-1] == half


@given(st.integers(1, 5), st.integers(1, 9), seeds)
@quick
def test_int2_holds_the_quarters_of_a_head_from_low_bits_to_high(tokens, quarter, seed):
    k, v = random_pages((1, 1, tokens, 4 * quarter), seed)
    payload = encode("int2", k, v)
    codes = torch.cat([(payload.k >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1).float()
    expected = codes * payload.k_scale.float().unsqueeze(2) + payload.k_zero.float().unsqueeze(2)
    torch.testing.assert_close(decode(payload, torch.float32)[0], expected)
    assert payload.k.shape[-1] == quarter


@given(shapes, seeds, st.sampled_from((1e-4, 1.0, 300.0)))
@quick
def test_fp8_is_off_by_at_most_a_sixteenth_of_a_value_or_half_the_smallest_step(shape, seed, spread):
    k, v = random_pages(shape, seed, spread)
    payload = encode("fp8", k, v)
    for x, back, scale in zip(
        (k, v), decode(payload, torch.float32), (payload.k_scale.unsqueeze(2), payload.v_scale), strict=True
    ):
        smallest = scale.float() * 2.0**-9
        assert ((x - back).abs() <= torch.maximum(x.abs() / 16, smallest / 2) * (1 + 1e-5)).all()


def test_float_codecs_keep_their_values():
    k, v = random_pages((3, 2, 16, 32), 0)
    assert torch.equal(decode(encode("native", k, v), torch.float32)[0], k)
    assert torch.equal(decode(encode("bf16", k, v), torch.float32)[1], v.bfloat16().float())
    assert decode(encode("int8", k, v), torch.bfloat16)[0].dtype == torch.bfloat16


def test_error_is_measured_per_page_and_grows_down_the_ladder():
    k, v = random_pages((6, 2, 16, 64), 1)
    errors = [codec_error(k, v, codec) for codec in CODECS]
    assert all(error.shape == (6,) for error in errors)
    assert torch.equal(errors[0], torch.zeros(6))
    for above, below in pairwise(errors):
        assert (above < below).all()
    assert errors[1].max() < 4e-3
    assert errors[2].max() < 8e-3
    assert errors[3].max() < 0.03
    assert errors[4].max() < 0.12
    assert errors[5].max() < 0.6
    k_back, v_back = decode(encode("int4", k, v), torch.float32)
    by_hand = 0.5 * ((k[2] - k_back[2]).norm() / k[2].norm() + (v[2] - v_back[2]).norm() / v[2].norm())
    torch.testing.assert_close(errors[CODECS.index("int4")][2], by_hand)


def test_biased_channels_cost_no_accuracy():
    k, v = random_pages((4, 2, 16, 64), 2)
    bias = 20 * torch.randn(1, 2, 1, 64, generator=torch.Generator().manual_seed(3))
    k_back, _ = decode(encode("int4", k + bias, v), torch.float32)
    assert (k + bias - k_back).norm() / k.norm() < 0.08


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [0.0, 0.37, -1234.5])
def test_constant_pages_survive(codec, value):
    k = torch.full((2, 1, 4, 32), value)
    k_back, v_back = decode(encode(codec, k, k), torch.float32)
    torch.testing.assert_close(k_back, k, rtol=5e-3, atol=0)
    torch.testing.assert_close(v_back, k, rtol=5e-3, atol=0)
    assert torch.isfinite(codec_error(k, k, codec)).all()


def test_values_beyond_fp16_saturate_without_nan():
    k = torch.tensor([1e30, -1e30, 0.0, 5.0]).view(1, 1, 4, 1).expand(1, 1, 4, 32).contiguous()
    for codec in ("int8", "fp8", "int4", "int2"):
        assert all(torch.isfinite(x).all() for x in decode(encode(codec, k, k), torch.float32))


def test_bytes_of_a_known_geometry():
    # codes + K scale and zero per channel + V scale per token (int4: per token and 32 channels)
    values = 8 * 16 * 128
    assert page_bytes("native", 8, 16, 128, torch.float32) == 2 * values * 4
    assert page_bytes("bf16", 8, 16, 128, torch.float32) == 2 * values * 2
    assert page_bytes("int8", 8, 16, 128, torch.bfloat16) == 2 * values + 8 * (4 * 128 + 2 * 16)
    assert page_bytes("fp8", 8, 16, 128, torch.bfloat16) == 2 * values + 8 * (2 * 128 + 2 * 16)
    assert page_bytes("int4", 8, 16, 128, torch.bfloat16) == values + 8 * (4 * 128 + 2 * 16 * 4)
    assert page_bytes("int2", 8, 16, 128, torch.bfloat16) == values // 2 + 8 * (4 * 128 + 2 * 16 * 4)


def test_reencoding_goes_down_only_and_through_the_decoded_values():
    payload = encode("int8", *random_pages((2, 2, 16, 32), 4))
    assert reencode(payload, "int8") is payload
    assert_same(reencode(payload, "int4"), encode("int4", *decode(payload, torch.float32)))
    with pytest.raises(ValueError, match="int8 cannot become bf16"):
        reencode(payload, "bf16")


def test_mistakes_are_named():
    k, v = random_pages((1, 1, 4, 6), 5)
    with pytest.raises(ValueError, match=r"'in8'.*did you mean 'int8'.*native, bf16, int8, fp8, int4, int2"):
        encode("in8", k, v)
    with pytest.raises(ValueError, match="did you mean 'bf16'"):
        page_bytes("BF-16", 1, 1, 2, torch.float32)
    with pytest.raises(ValueError, match="one shape"):
        encode("int8", k, v[:, :, :2])
    with pytest.raises(ValueError, match="2 channels in a byte: head_dim must be a multiple, got 5"):
        encode("int4", k[..., :5], v[..., :5])
    with pytest.raises(ValueError, match="int2 packs 4 channels in a byte: v_dim must be a multiple, got 6"):
        encode("int2", k[..., :4], v)
    with pytest.raises(ValueError, match="at least 48 bytes"):
        PagePayload.from_bytes(torch.zeros(2, 47, dtype=torch.uint8), "native", 1, 3, 4, torch.bfloat16)
    with pytest.raises(ValueError, match="cannot put"):
        encode("int8", k, v).put(torch.tensor([0]), encode("int4", k, v))


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_may_be_empty(codec):
    k, v = torch.empty(2, 0, 2, 4, 32)
    payload = encode(codec, k, v)
    flat = payload.to_bytes()
    assert flat.shape == (0, page_bytes(codec, 2, 4, 32, torch.float32))
    assert_same(PagePayload.from_bytes(flat, codec, 2, 4, 32, torch.float32), payload)
    assert decode(payload, torch.float32)[1].shape == (0, 2, 4, 32)
    assert codec_error(k, v, codec).shape == (0,)
