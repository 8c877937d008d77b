"""Inputs of the checks: pages with random content, and page tables in random order."""

from __future__ import annotations

import torch
from torch import Tensor

from pikv_kernels import PagePayload, PagePool, encode


def encoded_case(codecs: tuple[str, ...], dtype: torch.dtype, rows: int, pages: int, device: torch.device) -> tuple:
    """Arguments of `paged_decode_attention` over encoded pages of 16 tokens, 4 KV heads of 128, 32 query heads."""
    generator = torch.Generator().manual_seed(0)
    each = -(-rows * pages // len(codecs))
    payloads = []
    for codec in codecs:
        k, v = torch.randn(2, each, 4, 16, 128, generator=generator).to(device, dtype).unbind(0)
        payloads.append(encode(codec, k, v))
    table = torch.randperm(each * len(codecs), generator=generator)[: rows * pages].view(rows, pages).int()
    valid = torch.full((rows, pages), 16, dtype=torch.int32)
    table[0, pages // 2], valid[:, -1] = -1, 5  # a page that is not there, a last page partly written
    q = torch.randn(rows, 32, 128, generator=generator).to(device, dtype)
    return q, PagePool.of(payloads), table.to(device), valid.to(device), 128**-0.5


def random_payload(codec: str, pages: int, heads: int, head_dim: int, context_device: torch.device) -> PagePayload:
    """Pages of 16 tokens of a bf16 model with random numbers in every field, made in place: no time to encode GBs."""
    payload = PagePayload.zeros(codec, pages, heads, 16, head_dim, torch.bfloat16, context_device)
    for name, tensor in payload.tensors().items():
        if tensor.dtype == torch.uint8:
            tensor.random_(0, 0x78 if codec == "fp8" else 256)  # fp8: no NaN
        elif name in ("k", "v"):
            tensor.normal_()
        elif name == "k_zero":
            tensor.fill_(-1.0)
        else:
            tensor.fill_(0.01)
    return payload


def tables(rows: int, pages: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Every row's own pages, in random order, all full: ``(rows, pages)`` int32 twice."""
    table = torch.randperm(rows * pages, device=device).view(rows, pages).int()
    return table, torch.full((rows, pages), 16, dtype=torch.int32, device=device)
