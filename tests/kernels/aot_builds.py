"""The calls whose kernels `aot_gate.py` compiles: the shapes of Qwen3-30B-A3B, pages of 16 tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from pikv_kernels import CODECS, PagePayload, PagePool
from pikv_kernels.triton_attention import triton_paged_decode

KV_HEADS, GROUP, DIM, PAGE_TOKENS, PAGES = 4, 8, 128, 16, 64


def decode(codecs: tuple[str, ...], dtype: torch.dtype, page_lse: bool = False) -> None:
    pool = PagePool.of([PagePayload.zeros(codec, PAGES, KV_HEADS, PAGE_TOKENS, DIM, dtype) for codec in codecs])
    q = torch.zeros(2, KV_HEADS * GROUP, DIM, dtype=dtype)
    table = torch.zeros(2, PAGES, dtype=torch.int32)
    triton_paged_decode(q, pool, table, table, 1.0, page_lse=page_lse, splits=4)


BUILDS: dict[str, Callable[[], None]] = {
    **{f"decode {codec}": partial(decode, (codec,), torch.bfloat16) for codec in CODECS[1:]},
    "decode mixed": partial(decode, ("native", "int8", "int4"), torch.bfloat16),
    "decode all mass": partial(decode, CODECS, torch.bfloat16, True),
    "decode all fp32": partial(decode, CODECS, torch.float32, True),
}
