"""Slow, obvious float64 references, and the random inputs that the kernel tests share."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from pikv_kernels import CODECS, PagePool, decode, encode


@dataclasses.dataclass
class Case:
    """One paged decode call, with what each slot decodes to: ``k, v (slots, heads, tokens, dim)``."""

    q: Tensor
    pool: PagePool
    page_table: Tensor
    tokens_in_page: Tensor
    scale: float
    k: Tensor
    v: Tensor

    @property
    def args(self) -> tuple[Tensor, PagePool, Tensor, Tensor, float]:
        return self.q, self.pool, self.page_table, self.tokens_in_page, self.scale


def make_case(
    codecs: tuple[str, ...] = ("native",),
    dtype: torch.dtype = torch.float32,
    rows: int = 3,
    max_pages: int = 4,
    query_heads: int = 4,
    heads: int = 2,
    page_tokens: int = 16,
    head_dim: int = 32,
    seed: int = 0,
) -> Case:
    """Ragged rows: some pages partly filled, some table entries -1, the last row (of several) empty."""
    gen = torch.Generator().manual_seed(seed)
    per_codec = max(1, rows * max_pages // len(codecs))
    payloads, ks, vs = [], [], []
    for codec in codecs:
        shape = (per_codec, heads, page_tokens, head_dim)
        k = torch.randn(shape, generator=gen) + torch.randn((1, heads, 1, head_dim), generator=gen)
        payload = encode(codec, k.to(dtype), torch.randn(shape, generator=gen).to(dtype))
        payloads.append(payload)
        k64, v64 = decode(payload, torch.float64)
        ks.append(k64)
        vs.append(v64)
    slots = per_codec * len(codecs)
    order = torch.randperm(slots, generator=gen)
    page_table = order[torch.arange(rows * max_pages) % slots].view(rows, max_pages).int()
    tokens = torch.full((rows, max_pages), page_tokens, dtype=torch.int32)
    tokens[:, -1] = torch.randint(1, page_tokens + 1, (rows,), generator=gen).int()
    if max_pages > 2:
        page_table[0, 1] = -1
        tokens[1 % rows, 0] = 0
    if rows > 1:
        page_table[-1] = -1
    q = torch.randn(rows, query_heads, head_dim, generator=gen).to(dtype)
    return Case(q, PagePool.of(payloads), page_table, tokens, head_dim**-0.5, torch.cat(ks), torch.cat(vs))


def reference_decode(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Token by token in float64: out, lse and page mass of `paged_decode_attention`."""
    rows, query_heads, head_dim = case.q.shape
    group = query_heads // case.k.shape[1]
    max_pages = case.page_table.shape[1]
    out = torch.zeros(rows, query_heads, head_dim, dtype=torch.float64)
    lse = torch.full((rows, query_heads), -math.inf, dtype=torch.float64)
    mass = torch.zeros(rows, max_pages, dtype=torch.float64)
    for row in range(rows):
        for h in range(query_heads):
            read = [
                (page, case.k[slot, h // group, token], case.v[slot, h // group, token])
                for page in range(max_pages)
                if (slot := int(case.page_table[row, page])) >= 0
                for token in range(int(case.tokens_in_page[row, page]))
            ]
            if read:
                scores = torch.stack([k for _, k, _ in read]) @ case.q[row, h].double() * case.scale
                lse[row, h] = torch.logsumexp(scores, 0)
                probs = torch.softmax(scores, 0)
                out[row, h] = probs @ torch.stack([v for _, _, v in read])
                for (page, _, _), p in zip(read, probs, strict=True):
                    mass[row, page] += p / query_heads
    return out, lse, mass


def reference_dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Query by query in float64; ``seen (queries, keys)`` bool."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full(q.shape[:2], -math.inf, dtype=torch.float64)
    for i in range(q.shape[0]):
        for h in range(q.shape[1]):
            keys = k[seen[i], h // group].double()
            if len(keys):
                scores = keys @ q[i, h].double() * scale
                lse[i, h] = torch.logsumexp(scores, 0)
                out[i, h] = torch.softmax(scores, 0) @ v[seen[i], h // group].double()
    return out, lse


def poisoned(case: Case) -> Case:
    """The same call with NaN, inf and 1e30 wherever no result may depend on it.

    That is: every token slot after the valid ones, every page that no row lists, every codec's spare rows.
    """
    valid = torch.zeros(len(case.pool.slot_row), dtype=torch.int64)
    listed = (case.page_table.flatten().tolist(), case.tokens_in_page.flatten().tolist())
    for slot, tokens in zip(*listed, strict=True):
        if slot >= 0:
            valid[slot] = max(int(valid[slot]), tokens)
    payloads = {name: payload.apply(torch.clone) for name, payload in case.pool.payloads.items()}
    for slot, tokens in enumerate(valid.tolist()):
        payload = payloads[CODECS[int(case.pool.slot_codec[slot])]]
        row = int(case.pool.slot_row[slot])
        for i, (name, tensor) in enumerate(payload.tensors().items()):
            poison = 255 if tensor.dtype == torch.uint8 else (math.nan, 1e30, -math.inf)[(slot + i) % 3]
            if not name.startswith("k_"):
                tensor[row, :, tokens:] = poison
            elif tokens == 0:
                tensor[row] = poison
    return dataclasses.replace(case, pool=dataclasses.replace(case.pool, payloads=payloads))
