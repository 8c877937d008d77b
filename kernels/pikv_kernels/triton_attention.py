"""Triton kernel of `attention.paged_decode_attention`: pages of all codecs in one launch.

Importing this module imports triton. What the interpreter and the compiler both need: every load is upcast at
once (the interpreter's bf16 arithmetic is wrong), no autotune, no block pointers.
"""

# ruff: noqa: SIM102 - an outer `if` on a constexpr drops a codec from the build; joined with `and` it would not

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pikv_kernels.merge import merge_partials
from pikv_kernels.payload import CODECS, payload_fields, v_group_channels
from pikv_kernels.pool import PagePool

_MIN_DOT = 16
"""`tl.dot` on a GPU refuses tiles with a side below 16; the interpreter does not notice."""
_PROGRAMS_PER_SM = 4
_MIN_PAGES_PER_SPLIT = 8
"""Fewer pages per program do not pay for the merge."""


@triton.jit
def _float_tile(base, unit, slot, dim, read, PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr):
    offset = (unit * PAGE_TOKENS + slot[:, None]) * HEAD_DIM + dim[None, :]
    return tl.load(base + offset, mask=read, other=0.0).to(tl.float32)


@triton.jit
def _code_tile(base, unit, slot, dim, read, PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BITS: tl.constexpr):
    # int4: channels d and d + HEAD_DIM / 2 load the same byte and take its low and its high nibble
    width: tl.constexpr = HEAD_DIM * BITS // 8
    offset = (unit * PAGE_TOKENS + slot[:, None]) * width + (dim % width)[None, :]
    byte = tl.load(base + offset, mask=read, other=0).to(tl.int32)
    return ((byte >> ((dim // width) * BITS)[None, :]) & (2**BITS - 1)).to(tl.float32)


@triton.jit
def _decoded_tiles(
    k_codes,
    v_codes,
    k_scale,
    k_zero,
    v_scale,
    unit,
    slot,
    dim,
    read,
    PAGE_TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BITS: tl.constexpr,
    V_GROUP: tl.constexpr,
):
    in_head = dim < HEAD_DIM
    k_step = tl.load(k_scale + unit * HEAD_DIM + dim, mask=in_head, other=0.0).to(tl.float32)
    low = tl.load(k_zero + unit * HEAD_DIM + dim, mask=in_head, other=0.0).to(tl.float32)
    k_code = _code_tile(k_codes, unit, slot, dim, read, PAGE_TOKENS, HEAD_DIM, BITS)
    groups: tl.constexpr = HEAD_DIM // V_GROUP
    v_side = (unit * PAGE_TOKENS + slot[:, None]) * groups + (dim // V_GROUP)[None, :]
    v_step = tl.load(v_scale + v_side, mask=read, other=0.0).to(tl.float32)
    v_code = _code_tile(v_codes, unit, slot, dim, read, PAGE_TOKENS, HEAD_DIM, BITS)
    middle: tl.constexpr = (2**BITS - 1) / 2
    return low[None, :] + k_step[None, :] * k_code, v_step * (v_code - middle)


@triton.jit
def paged_decode_kernel(
    q,
    page_table,
    tokens_in_page,
    slot_codec,
    slot_row,
    native_k,
    native_v,
    bf16_k,
    bf16_v,
    int8_k,
    int8_v,
    int8_k_scale,
    int8_k_zero,
    int8_v_scale,
    int4_k,
    int4_v,
    int4_k_scale,
    int4_k_zero,
    int4_v_scale,
    out,
    lse,
    page_lse,
    scale,
    rows,
    max_pages,
    pages_per_split,
    CODEC_BITSET: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP_HEADS: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    INT4_GROUP: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    DIM_TILE: tl.constexpr,
    MASS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: one row, one KV head with its query heads, one split of the row's pages (online softmax).

    ``out (splits, rows, heads, head_dim)``, ``lse (splits, rows, heads)`` and, with MASS, ``page_lse (rows,
    heads, max_pages)``, filled with -inf by the caller. Bit i of CODEC_BITSET says that codec i occurs.
    """
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    in_group, slot, dim = tl.arange(0, QUERY_TILE), tl.arange(0, TOKEN_TILE), tl.arange(0, DIM_TILE)
    query_head = head * GROUP_HEADS + in_group
    is_query = in_group < GROUP_HEADS
    q_offset = (row * HEADS * GROUP_HEADS + query_head)[:, None] * HEAD_DIM + dim[None, :]
    q_mask = is_query[:, None] & (dim < HEAD_DIM)[None, :]
    q_tile = tl.load(q + q_offset, mask=q_mask, other=0.0).to(tl.float32) * scale

    top = tl.full((QUERY_TILE,), float("-inf"), tl.float32)
    total = tl.zeros((QUERY_TILE,), tl.float32)
    acc = tl.zeros((QUERY_TILE, DIM_TILE), tl.float32)
    page = split * pages_per_split
    end = tl.minimum(page + pages_per_split, max_pages)
    while page < end:  # triton 3.6 with numpy 2.4 cannot interpret a `range` with run-time bounds
        page_slot = tl.load(page_table + row * max_pages + page)
        count = tl.load(tokens_in_page + row * max_pages + page)
        if (page_slot >= 0) & (count > 0):
            codec = tl.load(slot_codec + page_slot)
            # int64, in units of one head of one page: a pool may hold more than 2**31 values
            unit = tl.load(slot_row + page_slot).to(tl.int64) * HEADS + head
            read = (slot < tl.minimum(count, PAGE_TOKENS))[:, None] & (dim < HEAD_DIM)[None, :]
            k = tl.zeros((TOKEN_TILE, DIM_TILE), tl.float32)
            v = tl.zeros((TOKEN_TILE, DIM_TILE), tl.float32)
            if CODEC_BITSET & 1:
                if codec == 0:
                    k = _float_tile(native_k, unit, slot, dim, read, PAGE_TOKENS, HEAD_DIM)
                    v = _float_tile(native_v, unit, slot, dim, read, PAGE_TOKENS, HEAD_DIM)
            if CODEC_BITSET & 2:
                if codec == 1:
                    k = _float_tile(bf16_k, unit, slot, dim, read, PAGE_TOKENS, HEAD_DIM)
                    v = _float_tile(bf16_v, unit, slot, dim, read, PAGE_TOKENS, HEAD_DIM)
            if CODEC_BITSET & 4:
                if codec == 2:
                    k, v = _decoded_tiles(
                        int8_k,
                        int8_v,
                        int8_k_scale,
                        int8_k_zero,
                        int8_v_scale,
                        unit,
                        slot,
                        dim,
                        read,
                        PAGE_TOKENS,
                        HEAD_DIM,
                        8,
                        HEAD_DIM,
                    )
            if CODEC_BITSET & 8:
                if codec == 3:
                    k, v = _decoded_tiles(
                        int4_k,
                        int4_v,
                        int4_k_scale,
                        int4_k_zero,
                        int4_v_scale,
                        unit,
                        slot,
                        dim,
                        read,
                        PAGE_TOKENS,
                        HEAD_DIM,
                        4,
                        INT4_GROUP,
                    )
            scores = tl.dot(q_tile, tl.trans(k), input_precision=PRECISION)
            scores = tl.where((slot < count)[None, :], scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, axis=1))
            probs = tl.exp(scores - new_top[:, None])
            decay = tl.exp(top - new_top)
            page_total = tl.sum(probs, axis=1)
            if MASS:
                offset = (row * HEADS * GROUP_HEADS + query_head) * max_pages + page
                tl.store(page_lse + offset, new_top + tl.log(page_total), mask=is_query)
            total = total * decay + page_total
            acc = acc * decay[:, None] + tl.dot(probs, v, input_precision=PRECISION)
            top = new_top
        page += 1

    nonzero = tl.where(total > 0, total, 1.0)
    result = (split * rows + row) * HEADS * GROUP_HEADS + query_head
    tl.store(out + result[:, None] * HEAD_DIM + dim[None, :], acc / nonzero[:, None], mask=q_mask)
    tl.store(lse + result, tl.where(total > 0, top + tl.log(nonzero), float("-inf")), mask=is_query)


def triton_paged_decode(
    q: Tensor,
    pool: PagePool,
    page_table: Tensor,
    tokens_in_page: Tensor,
    scale: float,
    *,
    mass: bool,
    splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Launch the kernel; arguments and results as `attention.torch_paged_decode`.

    Args:
        q: ``(rows, query_heads, head_dim)`` float.
        pool: Where the pages are; its tensors must be contiguous.
        page_table: ``(rows, max_pages)`` int32.
        tokens_in_page: ``(rows, max_pages)`` int32.
        scale: Factor of the scores.
        mass: Also return each page's share of the attention.
        splits: Programs that share a (row, KV head); None picks a number that fills the device.

    Raises:
        ValueError: A pool tensor is not contiguous.
    """
    rows, query_heads, _ = q.shape
    max_pages = page_table.shape[1]
    splits = splits or _pick_splits(q, rows * pool.shape[0], max_pages)
    out = torch.empty(splits, *q.shape, dtype=torch.float32, device=q.device)
    lse = torch.empty(splits, rows, query_heads, dtype=torch.float32, device=q.device)
    page_lse = torch.full((rows, query_heads, max_pages if mass else 0), -torch.inf, device=q.device)
    if rows:
        paged_decode_kernel[(rows, pool.shape[0], splits)](
            q.contiguous(),
            page_table.int().contiguous(),
            tokens_in_page.int().contiguous(),
            pool.slot_codec,
            pool.slot_row,
            *_pool_tensors(pool, q),
            out,
            lse,
            page_lse,
            float(scale),
            rows,
            max_pages,
            triton.cdiv(max_pages, splits),
            **launch_constants(pool, q, mass),
            num_warps=4,
        )
    merged, merged_lse = merge_partials(out, lse) if splits > 1 else (out[0], lse[0])
    if not mass:
        return merged, merged_lse, None
    shift = merged_lse.masked_fill(merged_lse == -torch.inf, 0.0)
    return merged, merged_lse, torch.exp(page_lse - shift.unsqueeze(2)).mean(1)


def launch_constants(pool: PagePool, q: Tensor, mass: bool) -> dict[str, int | bool | str]:
    """The kernel's compile-time arguments for a pool and queries."""
    heads, page_tokens, head_dim = pool.shape
    group_heads = q.shape[1] // heads
    return {
        "CODEC_BITSET": sum(1 << CODECS.index(codec) for codec in pool.payloads),
        "HEADS": heads,
        "GROUP_HEADS": group_heads,
        "PAGE_TOKENS": page_tokens,
        "HEAD_DIM": head_dim,
        "INT4_GROUP": v_group_channels("int4", head_dim),
        "QUERY_TILE": max(_MIN_DOT, triton.next_power_of_2(group_heads)),
        "TOKEN_TILE": max(_MIN_DOT, triton.next_power_of_2(page_tokens)),
        "DIM_TILE": max(_MIN_DOT, triton.next_power_of_2(head_dim)),
        "MASS": mass,
        # 16-bit values fit in tf32 without loss. "ieee" would spill at head_dim 128: it has no tensor core.
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32",
    }


def _pool_tensors(pool: PagePool, absent: Tensor) -> list[Tensor]:
    """The tensors of all codecs in the kernel's order; ``absent`` stands in for codecs not in the pool."""
    tensors: list[Tensor] = []
    for codec in CODECS:
        payload = pool.payloads.get(codec)
        names = [field.name for field in payload_fields(codec, *pool.shape, torch.float32)]
        for name in names:
            tensor = absent if payload is None else payload.tensors()[name]
            if payload is not None and not tensor.is_contiguous():
                raise ValueError(f"pool tensor {codec}.{name} must be contiguous")
            tensors.append(tensor)
    return tensors


def _pick_splits(q: Tensor, programs: int, max_pages: int) -> int:
    if not q.is_cuda:
        return 1
    target = _PROGRAMS_PER_SM * torch.cuda.get_device_properties(q.device).multi_processor_count
    most = max(1, max_pages // _MIN_PAGES_PER_SPLIT)
    return min(most, max(1, target // max(1, programs)))
