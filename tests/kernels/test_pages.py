"""Writing tokens and recoding pages, by torch and by the interpreted kernels, which must write the same bits."""

from __future__ import annotations

import pytest
import torch
from implementations import both

from pikv_kernels import CODECS, PagePayload, decode, encode, recode_pages, reencode, store_tokens

LADDER = [(a, b) for i, a in enumerate(CODECS) for b in CODECS[i + 1 :]]
QUICK = [("native", codec) for codec in CODECS[1:]] + [("int8", "int4"), ("fp8", "int2")]


def pages(seed: int, count: int = 3, tokens: int = 16, dims: tuple[int, int] = (32, 64), heads: int = 2):
    gen = torch.Generator().manual_seed(seed)
    k = torch.randn(count, heads, tokens, dims[0], generator=gen) * torch.rand(1, heads, 1, dims[0], generator=gen)
    v = torch.randn(count, heads, tokens, dims[1], generator=gen)
    return k + torch.randn(1, heads, 1, dims[0], generator=gen), v


def assert_recodes(source: PagePayload, codec: str) -> None:
    """Rows 2 and 0 of the source go to rows 1 and 4; the others keep what they had."""
    heads, tokens, dims = source.heads, source.page_tokens, (source.head_dim, source.v_dim)
    target = PagePayload.zeros(codec, 6, heads, tokens, dims[0], torch.float32, v_dim=dims[1])
    for tensor in target.tensors().values():
        tensor.fill_(77)
    recode_pages(source, torch.tensor([2, 0]), target, torch.tensor([1, 4]))
    expected = reencode(source.select(torch.tensor([2, 0])), codec).tensors()
    for name, tensor in target.tensors().items():
        if codec == "bf16":  # the interpreter cuts where a GPU rounds
            torch.testing.assert_close(tensor[[1, 4]], expected[name], rtol=2**-7, atol=0)
        else:
            assert torch.equal(tensor[[1, 4]], expected[name]), name
        assert (tensor[[0, 2, 3, 5]] == 77).all(), name


@both
@pytest.mark.parametrize(("before", "after"), QUICK)
def test_recoded_pages_are_what_encode_writes(before, after):
    assert_recodes(encode(before, *pages(1)), after)


@pytest.mark.slow
@both
@pytest.mark.parametrize("tokens", [5, 8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("before", "after"), LADDER)
def test_recoding_over_the_whole_ladder(before, after, dtype, tokens):
    k, v = pages(tokens, tokens=tokens, dims=(64, 16))
    assert_recodes(encode(before, k.to(dtype), v.to(dtype)), after)


@both
@pytest.mark.parametrize("value", [0.0, 1e30, -1e30, 3e-6])
@pytest.mark.parametrize("codec", ["int8", "fp8", "int4"])
def test_extreme_pages_recode_as_encode_does(codec, value):
    k, v = pages(2, count=3)
    k[:, :, 3], v[:, 0] = value, value
    assert_recodes(encode("native", k, v), codec)


@both
@pytest.mark.parametrize(("tokens", "dims"), [(5, (32, 32)), (16, (48, 24))])
def test_pages_of_odd_shapes(tokens, dims):
    assert_recodes(encode("native", *pages(3, tokens=tokens, dims=dims)), "int4")


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_tokens_land_in_their_slots_and_nowhere_else(dtype):
    payload = PagePayload.zeros("native", 5, 3, 8, 24, dtype, v_dim=40)
    for tensor in payload.tensors().values():
        tensor.fill_(-9)
    gen = torch.Generator().manual_seed(0)
    k, v = torch.randn(4, 3, 24, generator=gen), torch.randn(4, 3, 40, generator=gen)
    rows, slots = torch.tensor([4, 0, 4, 2], dtype=torch.int32), torch.tensor([7, 0, 3, 5], dtype=torch.int32)
    store_tokens(payload, rows, slots, k, v)
    written = torch.zeros(5, 8, dtype=torch.bool)
    written[rows.long(), slots.long()] = True
    for tensor, values in ((payload.k, k), (payload.v, v)):
        for token in range(4):
            assert torch.equal(tensor[rows[token], :, slots[token]], values[token].to(dtype))
        assert (tensor.transpose(1, 2)[~written] == -9).all()


def test_nothing_to_write_is_nothing_written():
    payload, none = PagePayload.zeros("native", 1, 2, 4, 16, torch.float32), torch.empty(0, dtype=torch.int64)
    store_tokens(payload, none, none, torch.empty(0, 2, 16), torch.empty(0, 2, 16))
    recode_pages(payload, none, PagePayload.zeros("int8", 1, 2, 4, 16, torch.float32), none)
    assert not payload.k.any()


def test_mistakes_are_named():
    payload, one = encode("int8", *pages(4, dims=(32, 32))), torch.tensor([0])
    with pytest.raises(ValueError, match="not int8"):
        store_tokens(payload, one, one, torch.zeros(1, 2, 32), torch.zeros(1, 2, 32))
    native = PagePayload.zeros("native", 1, 2, 16, 32, torch.float32)
    with pytest.raises(ValueError, match=r"k \(1, 2, 31\).*must be \(tokens, 2, 32\)"):
        store_tokens(native, one, one, torch.zeros(1, 2, 31), torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match="int8 cannot become native"):
        recode_pages(payload, one, native, one)
    with pytest.raises(ValueError, match="cannot become"):
        recode_pages(native, one, encode("int4", *pages(4, dims=(32, 64))), one)
    assert decode(payload, torch.float32)[0].shape == (3, 2, 16, 32)
