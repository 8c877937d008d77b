"""Attention over stored pages and over dense chunks, each with the log-sum-exp that merging needs."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from pikv_kernels.codecs import decode
from pikv_kernels.dispatch import use_triton
from pikv_kernels.payload import CODECS, PagePayload
from pikv_kernels.pool import PagePool

_CPU_SCORES_PER_BLOCK, _GPU_SCORES_PER_BLOCK = 1 << 20, 1 << 26
"""`partial_attention` holds this many fp32 scores at a time: 4 MiB on a CPU (its cache), 256 MiB on a GPU."""


@overload
def paged_decode_attention(
    q: Tensor,
    pool: PagePool,
    page_table: Tensor,
    tokens_in_page: Tensor,
    scale: float,
    *,
    mass: Literal[False] = False,
    first_token: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def paged_decode_attention(
    q: Tensor,
    pool: PagePool,
    page_table: Tensor,
    tokens_in_page: Tensor,
    scale: float,
    *,
    mass: Literal[True],
    first_token: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...


def paged_decode_attention(
    q: Tensor,
    pool: PagePool,
    page_table: Tensor,
    tokens_in_page: Tensor,
    scale: float,
    *,
    mass: bool = False,
    first_token: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Attend with one query token per row to the pages that its page table lists.

    Runs the Triton kernels on CUDA tensors and torch on others, see `dispatch.use_triton`.

    Args:
        q: ``(rows, query_heads, head_dim)`` float. Query heads are grouped: head h reads KV head
            ``h // (query_heads // kv_heads)``.
        pool: Where the pages are.
        page_table: ``(rows, max_pages)`` int32 slot ids; -1 lists no page. Order does not matter.
        tokens_in_page: ``(rows, max_pages)`` int32: how many of a page's first token slots are valid; what
            the others hold never reaches a result.
        scale: Factor of the scores, usually ``head_dim ** -0.5``.
        mass: Also return how much attention each listed page got.
        first_token: ``(rows, max_pages)`` int32: the first valid token slot of each page, where a sliding window
            begins inside a page; None: 0 everywhere.

    Returns:
        ``out (rows, query_heads, v_dim)`` and ``lse (rows, query_heads)``, fp32, natural log; 0 and -inf
        for rows that read nothing. With ``mass``, also ``(rows, max_pages)`` fp32: each page's share of this
        call's softmax, averaged over query heads; a row sums to 1, or to 0 if it read nothing.

    Raises:
        ValueError: Shapes that do not fit together, or an unknown ``PIKV_TRITON``.
    """
    out, lse, page_lse = paged_decode_partials(
        q, pool, page_table, tokens_in_page, scale, page_lse=mass, first_token=first_token
    )
    return (out, lse) if page_lse is None else (out, lse, page_mass(page_lse, lse))


def paged_decode_partials(
    q: Tensor,
    pool: PagePool,
    page_table: Tensor,
    tokens_in_page: Tensor,
    scale: float,
    *,
    page_lse: bool = False,
    first_token: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`paged_decode_attention` for a part of what a query reads: with what merging attention mass needs too.

    Args:
        q: As `paged_decode_attention`, like all that is not named here.
        pool: Where the pages are.
        page_table: ``(rows, max_pages)`` int32.
        tokens_in_page: ``(rows, max_pages)`` int32.
        scale: Factor of the scores.
        page_lse: Also return each page's own log-sum-exp. Once the parts' lse are merged, `page_mass` turns them into
            shares of the whole.
        first_token: ``(rows, max_pages)`` int32 or None.

    Returns:
        ``out (rows, query_heads, v_dim)``, ``lse (rows, query_heads)`` and ``(rows, query_heads, max_pages)`` or None;
        fp32, natural log, -inf where nothing was read.

    Raises:
        ValueError: As `paged_decode_attention`.
    """
    _check_decode(q, pool, page_table, tokens_in_page, first_token)
    # V that is part of K (latent attention) is read by torch: its heads are too wide for the kernel's tiles.
    if use_triton(q) and pool.v_from_k == 0:
        from pikv_kernels.triton_attention import triton_paged_decode  # triton may be missing elsewhere

        return triton_paged_decode(
            q, pool, page_table, tokens_in_page, scale, page_lse=page_lse, first_token=first_token
        )
    return torch_paged_decode(q, pool, page_table, tokens_in_page, scale, page_lse=page_lse, first_token=first_token)


def page_mass(page_lse: Tensor, lse: Tensor) -> Tensor:
    """Each page's share of a softmax, averaged over query heads.

    Args:
        page_lse: ``(rows, query_heads, pages)`` fp32, -inf where a page was not read.
        lse: ``(rows, query_heads)`` fp32 of the whole softmax, -inf where it is empty.

    Returns:
        ``(rows, pages)`` fp32.

    Raises:
        ValueError: The leading shapes differ.
    """
    if page_lse.shape[:2] != lse.shape:
        raise ValueError(f"page_lse {tuple(page_lse.shape)} must be lse {tuple(lse.shape)} plus a page axis")
    if use_triton(page_lse):
        from pikv_kernels.triton_merge import triton_page_mass

        return triton_page_mass(page_lse, lse)
    return torch.exp(page_lse - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(2)).mean(1)


def torch_paged_decode(
    q: Tensor,
    pool: PagePool,
    page_table: Tensor,
    tokens_in_page: Tensor,
    scale: float,
    *,
    page_lse: bool,
    first_token: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`paged_decode_partials` in torch, on any device."""
    rows, max_pages = page_table.shape
    heads, page_tokens, _ = pool.shape
    slot = torch.arange(page_tokens, device=q.device)
    unread = slot >= tokens_in_page.masked_fill(page_table < 0, 0).unsqueeze(2)
    if first_token is not None:
        unread |= slot < first_token.unsqueeze(2)
    unread = unread.view(rows, max_pages * page_tokens)
    k, v = (x.reshape(rows, heads, unread.shape[1], x.shape[2]) for x in _gather_pages(pool, page_table))
    row, key = unread.nonzero(as_tuple=True)
    v[row, :, key] = 0.0  # a probability of 0 would not silence a NaN here
    grouped_q = q.float().reshape(rows, heads, q.shape[1] // heads, q.shape[2]) * scale
    scores = grouped_q @ k.transpose(2, 3)
    probs, lse = _softmax(scores.masked_fill_(unread[:, None, None], -torch.inf))
    out, lse = (probs @ v).view(*q.shape[:2], pool.v_dim), lse.view(q.shape[:2])
    if not page_lse:
        return out, lse, None
    return out, lse, probs.view(*q.shape[:2], max_pages, page_tokens).sum(3).log_() + lse.unsqueeze(2)


def partial_attention(
    q: Tensor, k: Tensor, v: Tensor, mask_or_causal_offset: Tensor | int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend from a chunk of queries to dense keys, in fp32.

    Args:
        q: ``(queries, query_heads, head_dim)`` float, grouped as in `paged_decode_attention`.
        k: ``(keys, kv_heads, head_dim)`` float.
        v: ``(keys, kv_heads, v_dim)`` float.
        mask_or_causal_offset: An int c: query i sees keys j <= i + c; c = keys - queries where the last query
            is also the last key. A bool ``(queries, keys)``: True where a query sees a key. None: all.
        scale: Factor of the scores.

    Returns:
        ``out (queries, query_heads, v_dim)`` and ``lse (queries, query_heads)``, fp32, natural log; 0 and
        -inf for queries that see no key.

    Raises:
        ValueError: Shapes that do not fit together.
    """
    _check_partial(q, k, v, mask_or_causal_offset)
    queries, query_heads, head_dim = q.shape
    keys, heads, _ = k.shape
    grouped_q = q.reshape(queries, heads, query_heads // heads, head_dim).transpose(0, 1)
    k_heads, v_heads = k.float().permute(1, 2, 0), v.float().transpose(0, 1)
    out = torch.empty(*grouped_q.shape[:3], v.shape[2], device=q.device)
    lse = torch.empty(grouped_q.shape[:3], device=q.device)
    scores_per_block = _GPU_SCORES_PER_BLOCK if q.is_cuda else _CPU_SCORES_PER_BLOCK
    block = max(1, scores_per_block // max(1, query_heads * keys))
    for start in range(0, queries, block):
        part = slice(start, min(start + block, queries))
        block_q = grouped_q[:, part].float() * scale
        scores = (block_q.flatten(1, 2) @ k_heads).view(*block_q.shape[:3], keys)
        hidden = _hidden_keys(mask_or_causal_offset, part, keys, q.device)
        if hidden is not None:
            scores.masked_fill_(hidden.unsqueeze(1), -torch.inf)
        probs, lse[:, part] = _softmax(scores)
        out[:, part] = (probs.flatten(1, 2) @ v_heads).view(*block_q.shape[:3], v.shape[2])
    return out.transpose(0, 1).reshape(*q.shape[:2], v.shape[2]), lse.transpose(0, 1).reshape(q.shape[:2])


def _gather_pages(pool: PagePool, page_table: Tensor) -> tuple[Tensor, Tensor]:
    """Fp32 K and V, each ``(rows * heads * max_pages, page_tokens, its width)``; arbitrary for unlisted pages.

    Heads are gathered apart, so that the keys of a (row, head) come to lie side by side without another copy.
    """
    heads, page_tokens, head_dim = pool.shape
    if len(pool.slot_row) == 0:
        nothing = torch.zeros(page_table.numel() * heads, page_tokens, head_dim, device=page_table.device)
        return nothing, nothing.new_zeros(*nothing.shape[:2], pool.v_dim)
    slots = page_table.clamp(min=0)
    head = torch.arange(heads, device=page_table.device).unsqueeze(1)
    sources = (pool.slot_row[slots].unsqueeze(1) * heads + head).flatten()
    if len(pool.payloads) == 1:
        return _decode_heads(next(iter(pool.payloads.values())), sources, pool.v_from_k)
    codecs = pool.slot_codec[slots].masked_fill(page_table < 0, -1)
    codecs = codecs.unsqueeze(1).expand(-1, heads, -1).flatten()
    k = torch.empty(len(sources), page_tokens, head_dim, device=page_table.device)
    v = k.new_empty(*k.shape[:2], pool.v_dim)
    for codec, payload in pool.payloads.items():
        chosen = (codecs == CODECS.index(codec)).nonzero().squeeze(1)
        if chosen.numel():
            some_k, some_v = _decode_heads(payload, sources[chosen], pool.v_from_k)
            k.index_copy_(0, chosen, some_k)
            v.index_copy_(0, chosen, some_v)
    return k, v


def _decode_heads(payload: PagePayload, sources: Tensor, v_from_k: int) -> tuple[Tensor, Tensor]:
    """Decode copies of single heads; ``sources`` counts heads over all pages of the payload."""
    one_head_pages = payload.apply(lambda tensor: tensor.flatten(0, 1).index_select(0, sources).unsqueeze(1))
    k, v = decode(one_head_pages, torch.float32)
    k = k.squeeze(1)
    return k, k[..., :v_from_k] if v_from_k else v.squeeze(1)


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (overwriting ``scores``) and lse of the last axis; 0 and -inf where all are -inf."""
    if scores.shape[-1] == 0:
        return scores, scores.new_full(scores.shape[:-1], -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
    probs = scores.sub_(top).exp_()
    total = probs.sum(-1, keepdim=True)
    lse = (total.log() + top).squeeze(-1)
    return probs.div_(total.clamp_(min=1.0)), lse  # a sum that is not 0 holds exp(0)


def _hidden_keys(
    mask_or_causal_offset: Tensor | int | None, part: slice, keys: int, device: torch.device
) -> Tensor | None:
    if mask_or_causal_offset is None:
        return None
    if isinstance(mask_or_causal_offset, Tensor):
        return ~mask_or_causal_offset[part]
    last_seen = torch.arange(part.start, part.stop, device=device) + mask_or_causal_offset
    return torch.arange(keys, device=device) > last_seen.unsqueeze(1)


def _check_decode(
    q: Tensor, pool: PagePool, page_table: Tensor, tokens_in_page: Tensor, first_token: Tensor | None
) -> None:
    heads, _, head_dim = pool.shape
    if q.ndim != 3 or q.shape[2] != head_dim or q.shape[1] % heads:
        raise ValueError(f"q {tuple(q.shape)} must be (rows, multiple of {heads} heads, {head_dim})")
    if page_table.ndim != 2 or page_table.shape[0] != q.shape[0] or page_table.shape != tokens_in_page.shape:
        raise ValueError(
            f"page_table {tuple(page_table.shape)} and tokens_in_page {tuple(tokens_in_page.shape)} "
            f"must both be ({q.shape[0]}, max_pages)"
        )
    if first_token is not None and first_token.shape != page_table.shape:
        raise ValueError(f"first_token {tuple(first_token.shape)} must be as page_table, {tuple(page_table.shape)}")


def _check_partial(q: Tensor, k: Tensor, v: Tensor, mask_or_causal_offset: Tensor | int | None) -> None:
    ranks_fit = q.ndim == k.ndim == v.ndim == 3 and k.shape[:2] == v.shape[:2]
    if not ranks_fit or q.shape[2] != k.shape[2] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} must be "
            "(queries, query_heads, head_dim), (keys, kv_heads, head_dim) and (keys, kv_heads, any width), "
            "query_heads a multiple of kv_heads"
        )
    mask, shape = mask_or_causal_offset, (q.shape[0], k.shape[0])
    if isinstance(mask, Tensor) and (mask.dtype != torch.bool or mask.shape != shape):
        raise ValueError(f"mask must be bool {shape}, got {mask.dtype} {tuple(mask.shape)}")
