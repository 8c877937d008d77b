"""K and V of different widths, V that is a part of K, and windows that begin inside a page."""

from __future__ import annotations

import pytest
import torch

from pikv_kernels import (
    CODECS,
    PagePayload,
    PagePool,
    codec_error,
    decode,
    encode,
    page_bytes,
    paged_decode_attention,
    partial_attention,
    reencode,
)

HEADS, TOKENS, K_DIM, V_DIM, PAGES = 2, 8, 24, 16, 5
WIDTHS = [pytest.param(V_DIM, 0, id="narrow V"), pytest.param(32, 0, id="wide V"), pytest.param(0, V_DIM, id="V in K")]


def pages(v_dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (PAGES, HEADS, TOKENS)
    return torch.randn(*shape, K_DIM, generator=generator), torch.randn(*shape, v_dim, generator=generator)


@pytest.mark.parametrize(("v_dim", "v_from_k"), WIDTHS)
@pytest.mark.parametrize("codec", CODECS)
def test_pages_keep_their_widths_through_every_form(codec, v_dim, v_from_k):
    k, v = pages(v_dim)
    payload = encode(codec, k, v)
    assert (payload.head_dim, payload.v_dim) == (K_DIM, v_dim)
    assert payload.nbytes == PAGES * page_bytes(codec, HEADS, TOKENS, K_DIM, k.dtype, v_dim)
    again = PagePayload.from_bytes(payload.to_bytes(), codec, HEADS, TOKENS, K_DIM, k.dtype, v_dim)
    room = PagePayload.zeros(codec, PAGES, HEADS, TOKENS, K_DIM, k.dtype, v_dim=v_dim)
    room.put(torch.arange(PAGES), again)
    for ours, theirs in zip(room.tensors().values(), payload.tensors().values(), strict=True):
        assert torch.equal(ours, theirs)
    back_k, back_v = decode(payload, torch.float32)
    off_by = 1.4 if codec == "int2" else 0.5  # half a third of the range of a channel or token
    assert (back_k - k).abs().max() < off_by and (v_dim == 0 or (back_v - v).abs().max() < off_by)
    assert reencode(encode("native", k, v), codec).nbytes == payload.nbytes


def test_error_of_pages_without_v_is_that_of_k_alone():
    k, v = pages(K_DIM)
    whole, of_k, of_v = (codec_error(*pair, "int4") for pair in ((k, v), (k, v[..., :0]), (k[..., :0], v)))
    assert (of_k > 0).all() and torch.allclose(whole, 0.5 * (of_k + 2 * of_v))


@pytest.mark.parametrize(("v_dim", "v_from_k"), WIDTHS)
@pytest.mark.parametrize("mixed", [False, True])
def test_paged_attention_equals_dense_attention(v_dim, v_from_k, mixed):
    k, v = pages(v_dim)
    codecs = ("native", "int8") if mixed else ("native",)
    payloads = [encode(codec, k[i :: len(codecs)], v[i :: len(codecs)]) for i, codec in enumerate(codecs)]
    count = torch.tensor([[p.pages for p in payloads]]).sum()
    pool = PagePool(
        {p.codec: p for p in payloads},
        torch.tensor([CODECS.index(p.codec) for p in payloads for _ in range(p.pages)], dtype=torch.int32),
        torch.tensor([i for p in payloads for i in range(p.pages)], dtype=torch.int32),
        v_from_k,
    )
    assert pool.v_dim == (v_from_k or v_dim)
    table = torch.tensor([[2, 0, -1, 3], [4, 1, 2, 0]], dtype=torch.int32) % count
    table[0, 2] = -1
    valid = torch.tensor([[8, 8, 8, 3], [8, 8, 8, 1]], dtype=torch.int32)
    first = torch.tensor([[5, 0, 0, 0], [0, 0, 7, 0]], dtype=torch.int32)
    q = torch.randn(2, 4, K_DIM)
    out, lse = paged_decode_attention(q, pool, table, valid, 0.2, first_token=first)
    decoded = [decode(p, torch.float32) for p in payloads]
    all_k, all_v = torch.cat([d[0] for d in decoded]), torch.cat([d[1] for d in decoded])
    for row in range(2):
        keys, values = [], []
        for page, slot in enumerate(table[row].tolist()):
            if slot >= 0:
                part = slice(int(first[row, page]), int(valid[row, page]))
                keys.append(all_k[slot, :, part])
                values.append(all_k[slot, :, part, :v_from_k] if v_from_k else all_v[slot, :, part])
        dense_k, dense_v = (torch.cat(x, dim=1).transpose(0, 1) for x in (keys, values))
        expected, expected_lse = partial_attention(q[row : row + 1], dense_k, dense_v, None, 0.2)
        scores = torch.einsum("hgd,thd->hgt", q[row].view(2, 2, K_DIM), dense_k) * 0.2
        by_hand = torch.einsum("hgt,thd->hgd", scores.softmax(-1), dense_v).flatten(0, 1)
        assert torch.allclose(expected[0], by_hand, atol=1e-5)
        assert torch.allclose(out[row], by_hand, atol=1e-5)
        assert torch.allclose(lse[row], expected_lse[0], atol=1e-5)


def test_what_does_not_fit_is_refused():
    k, v = pages(V_DIM)
    with pytest.raises(ValueError, match=r"v_from_k=0: V is stored 0 wide"):
        PagePool.of([encode("native", k, v[..., :0])])
    with pytest.raises(ValueError, match="v_dim must be a multiple, got 3"):
        encode("int4", k, v[..., :3])
    with pytest.raises(ValueError, match=r"k and v must share one shape"):
        encode("native", k, v[:, :1])
    pool = PagePool.of([encode("native", k, v)])
    table = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"first_token \(1, 3\) must be as page_table"):
        first = torch.zeros(1, 3, dtype=torch.int32)
        paged_decode_attention(torch.randn(1, 2, K_DIM), pool, table, table + 1, 1.0, first_token=first)
