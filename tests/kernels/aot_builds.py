"""The calls whose kernels `aot_gate.py` compiles: the shapes of Qwen3-30B-A3B, pages of 16 tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from pikv_kernels import CODECS, PagePayload, PagePool
from pikv_kernels.triton_attention import triton_paged_decode
from pikv_kernels.triton_merge import triton_page_mass
from pikv_kernels.triton_pages import triton_recode_pages, triton_store_tokens
from pikv_kernels.triton_scores import triton_key_summaries, triton_page_scores, triton_page_utility
from pikv_kernels.triton_selection import triton_biased_gate, triton_choose, triton_listed

KV_HEADS, GROUP, DIM, PAGE_TOKENS, PAGES = 4, 8, 128, 16, 64
BF16 = torch.bfloat16


def payload(codec: str, dtype: torch.dtype = BF16) -> PagePayload:
    return PagePayload.zeros(codec, PAGES, KV_HEADS, PAGE_TOKENS, DIM, dtype)


def integers(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int32)


def decode(codecs: tuple[str, ...], dtype: torch.dtype = BF16, page_lse: bool = False) -> None:
    pool = PagePool.of([payload(codec, dtype) for codec in codecs])
    q = torch.zeros(2, KV_HEADS * GROUP, DIM, dtype=dtype)
    triton_paged_decode(q, pool, integers(2, PAGES), integers(2, PAGES), 1.0, page_lse=page_lse, splits=4)


def recode(before: str, after: str) -> None:
    triton_recode_pages(payload(before), integers(8), payload(after), integers(8))


def scores(bound: bool) -> None:
    keys = torch.zeros(PAGES, KV_HEADS, DIM, dtype=BF16)
    triton_page_scores(torch.zeros(2, KV_HEADS * GROUP, DIM, dtype=BF16), keys, keys, integers(2, PAGES), bound=bound)


def choose(**how: object) -> None:
    triton_choose(torch.zeros(2, 4096), torch.zeros(2, 4096, dtype=torch.bool), **how)


def store() -> None:
    keys = torch.zeros(8, KV_HEADS, DIM, dtype=BF16)
    triton_store_tokens(payload("native"), integers(8), integers(8), keys, keys)


EVERYWHERE: dict[str, Callable[[], object]] = {
    "decode all with mass": partial(decode, CODECS, page_lse=True),
    "mass": lambda: triton_page_mass(torch.zeros(2, 32, PAGES), torch.zeros(2, 32)),
    "store": store,
    "recode native int4": partial(recode, "native", "int4"),
    "summaries int8": lambda: triton_key_summaries(payload("int8"), integers(8)),
    "bounds": partial(scores, True),
    "utility": lambda: triton_page_utility(torch.zeros(PAGES, 6), torch.zeros(6)),
    "read set": partial(choose, largest=True, fan_out=0.1, bias=torch.zeros(2, 4096)),
    "list": lambda: triton_listed(torch.zeros(2, 64, dtype=torch.bool), integers(2, 64), integers(2, 64), 16),
    "gate": lambda: triton_biased_gate(torch.zeros(4, 128), torch.zeros(128), 8, renormalise=True),
}
"""Every kernel once: compiled for all architectures."""

VARIANTS: dict[str, Callable[[], object]] = {
    **{f"decode {codec}": partial(decode, (codec,)) for codec in CODECS[1:]},
    "decode native int8 int4": partial(decode, ("native", "int8", "int4")),
    "decode all fp32": partial(decode, CODECS, torch.float32, True),
    "recode native bf16": partial(recode, "native", "bf16"),
    "recode native int8": partial(recode, "native", "int8"),
    "recode native fp8": partial(recode, "native", "fp8"),
    "recode int8 int4": partial(recode, "int8", "int4"),
    "recode int4 int2": partial(recode, "int4", "int2"),
    "centroids": partial(scores, False),
    "victims": partial(choose, largest=False, count=integers(2)),
}
"""Other builds of the same kernels: compiled for the architecture that they are tuned for."""
