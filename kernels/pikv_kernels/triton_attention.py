"""Triton kernel of `attention.paged_decode_partials`: pages of all codecs in one launch; see docs/kernels.md.

One program reads one split of the pages of one row, for one KV head and the query heads that share it. It takes 64
token slots at a time, whichever pages they lie in, and computes with the tokens as rows: scores^T = K Q^T and
out^T = V^T P^T, so that the few query heads of a group are the short side of the products and the tensor cores work
on full tiles of tokens and channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pikv_kernels.payload import CODE_BITS, CODECS, payload_fields, v_group_channels
from pikv_kernels.pool import PagePool
from pikv_kernels.triton_merge import triton_merge_partials
from pikv_kernels.triton_tiles import float_tile, fp8_k_tile, fp8_v_tile, k_tile, v_tile

_MIN_QUERY_TILE, _MIN_DIM_TILE = 8, 16
"""What `tl.dot` on a GPU wants of the sides of a product; the interpreter does not notice."""
_MIN_STEPS_PER_SPLIT = 2
"""Fewer steps per program do not pay for the merge."""
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@dataclasses.dataclass(frozen=True)
class Launch:
    """How the work is laid out on the device; changes no result but for rounding."""

    tile_tokens: int = 64
    """Token slots of one step, a power of two; at least a page."""
    num_warps: int = 4
    num_stages: int = 1
    programs_per_sm: int = 4
    """How many programs a multiprocessor should get, by which the number of splits is chosen."""


ONE_CODEC, SEVERAL_CODECS, SEVERAL_IN_FP32 = Launch(), Launch(tile_tokens=32), Launch(tile_tokens=16, num_warps=8)
"""Tiles of several codecs are added up in registers: more tokens of them would spill."""


@triton.jit
def _slots_of(table, slot_codec, slot_row, page, end, head, HEADS: tl.constexpr, MIXED: tl.constexpr):
    """Of the page of every token slot: whether it is listed, its codec, and its head's unit in the codec's payload."""
    number = tl.load(table + page, mask=page < end, other=-1)
    listed = number >= 0
    # int64: a pool may hold more than 2**31 values
    unit = tl.load(slot_row + number, mask=listed, other=0).to(tl.int64) * HEADS + head
    codec = number
    if MIXED:
        codec = tl.load(slot_codec + number, mask=listed, other=-1)
    return listed, codec, unit


@triton.jit
def _mine(read, codec, INDEX: tl.constexpr, MIXED: tl.constexpr):
    """Token slots to be read that are stored in one codec."""
    if MIXED:
        read = read & (codec == INDEX)
    return read


@triton.jit
def _occurs(mine, MIXED: tl.constexpr):
    """Whether there are any; the only codec of a pool is not asked, so that its loads stay free of branches."""
    if MIXED:
        occurs = tl.max(mine.to(tl.int32), 0) > 0
    else:
        occurs = True
    return occurs


@triton.jit
def _joined(before, tile, MIXED: tl.constexpr):
    """Tiles of several codecs in one: each is 0 where it was not read."""
    if MIXED:
        tile = before + tile
    return tile


@triton.jit
def paged_decode_kernel(
    q, page_table, tokens_in_page, first_token, slot_codec, slot_row,
    native_k, native_v, bf16_k, bf16_v,
    int8_k, int8_v, int8_k_scale, int8_k_zero, int8_v_scale,
    fp8_k, fp8_v, fp8_k_scale, fp8_v_scale,
    int4_k, int4_v, int4_k_scale, int4_k_zero, int4_v_scale,
    int2_k, int2_v, int2_k_scale, int2_k_zero, int2_v_scale,
    out, lse, page_lse, scale, rows, max_pages, pages_per_split,
    CODEC_BITSET: tl.constexpr, MIXED: tl.constexpr, WINDOWED: tl.constexpr, MASS: tl.constexpr,
    HEADS: tl.constexpr, GROUP_HEADS: tl.constexpr, PAGE_TOKENS: tl.constexpr, K_DIM: tl.constexpr,
    V_DIM: tl.constexpr, INT4_GROUP: tl.constexpr, INT2_GROUP: tl.constexpr,
    PAGES: tl.constexpr, PAGE_TILE: tl.constexpr, K_TILE: tl.constexpr, V_TILE: tl.constexpr,
    QUERY_TILE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one row, one KV head with its query heads, one split of the row's pages (online softmax).

    ``out (splits, rows, heads, v_dim)``, ``lse (splits, rows, heads)`` and, with MASS, ``page_lse (rows, heads,
    max_pages)``: every entry is written. Bit i of CODEC_BITSET says that codec i occurs; MIXED, that several do.
    """
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    ROWS: tl.constexpr = PAGES * PAGE_TILE
    query, k_dim, v_dim = tl.arange(0, QUERY_TILE), tl.arange(0, K_TILE), tl.arange(0, V_TILE)
    page_of, slot = tl.arange(0, ROWS) // PAGE_TILE, tl.arange(0, ROWS) % PAGE_TILE
    query_head, is_query = head * GROUP_HEADS + query, query < GROUP_HEADS
    q_at = (row * HEADS * GROUP_HEADS + query_head)[None, :] * K_DIM + k_dim[:, None]
    q_tile = tl.load(q + q_at, mask=is_query[None, :] & (k_dim < K_DIM)[:, None], other=0.0).to(tl.float32).to(DOT)

    top = tl.full((QUERY_TILE,), float("-inf"), tl.float32)
    total = tl.zeros((QUERY_TILE,), tl.float32)
    acc = tl.zeros((V_TILE, QUERY_TILE), tl.float32)
    table, valid = page_table + row * max_pages, tokens_in_page + row * max_pages
    first = split * pages_per_split
    end = tl.minimum(first + pages_per_split, max_pages)
    next_slots = _slots_of(table, slot_codec, slot_row, first + page_of, end, head, HEADS, MIXED)
    for step in range(first, end, PAGES):
        # Where pages lie is looked up one step ahead: two dependent loads that the pages' own would wait for.
        listed, codec, unit = next_slots
        page = step + page_of
        count = tl.load(valid + page, mask=listed, other=0)
        read = slot < tl.minimum(count, PAGE_TOKENS)
        if WINDOWED:
            read = read & (slot >= tl.load(first_token + row * max_pages + page, mask=listed, other=0))
        k = tl.zeros((ROWS, K_TILE), DOT)
        v = tl.zeros((ROWS, V_TILE), DOT)
        if CODEC_BITSET & 1:
            mine = _mine(read, codec, 0, MIXED)
            if _occurs(mine, MIXED):
                k = _joined(k, float_tile(native_k, unit, slot, mine, PAGE_TOKENS, K_DIM, K_TILE, DOT), MIXED)
                v = _joined(v, float_tile(native_v, unit, slot, mine, PAGE_TOKENS, V_DIM, V_TILE, DOT), MIXED)
        if CODEC_BITSET & 2:
            mine = _mine(read, codec, 1, MIXED)
            if _occurs(mine, MIXED):
                k = _joined(k, float_tile(bf16_k, unit, slot, mine, PAGE_TOKENS, K_DIM, K_TILE, DOT), MIXED)
                v = _joined(v, float_tile(bf16_v, unit, slot, mine, PAGE_TOKENS, V_DIM, V_TILE, DOT), MIXED)
        if CODEC_BITSET & 4:
            mine = _mine(read, codec, 2, MIXED)
            if _occurs(mine, MIXED):
                k = _joined(k, k_tile(int8_k, int8_k_scale, int8_k_zero, unit, slot, mine, PAGE_TOKENS, K_DIM,
                                      K_TILE, ROWS, 8, DOT), MIXED)  # fmt: skip
                v = _joined(v, v_tile(int8_v, int8_v_scale, unit, slot, mine, PAGE_TOKENS, V_DIM, V_TILE,
                                      ROWS, 8, V_DIM, DOT), MIXED)  # fmt: skip
        if CODEC_BITSET & 8:
            mine = _mine(read, codec, 3, MIXED)
            if _occurs(mine, MIXED):
                k = _joined(k, fp8_k_tile(fp8_k, fp8_k_scale, unit, slot, mine, PAGE_TOKENS, K_DIM, K_TILE, DOT),
                            MIXED)  # fmt: skip
                v = _joined(v, fp8_v_tile(fp8_v, fp8_v_scale, unit, slot, mine, PAGE_TOKENS, V_DIM, V_TILE,
                                          ROWS, DOT), MIXED)  # fmt: skip
        if CODEC_BITSET & 16:
            mine = _mine(read, codec, 4, MIXED)
            if _occurs(mine, MIXED):
                k = _joined(k, k_tile(int4_k, int4_k_scale, int4_k_zero, unit, slot, mine, PAGE_TOKENS, K_DIM,
                                      K_TILE, ROWS, 4, DOT), MIXED)  # fmt: skip
                v = _joined(v, v_tile(int4_v, int4_v_scale, unit, slot, mine, PAGE_TOKENS, V_DIM, V_TILE,
                                      ROWS, 4, INT4_GROUP, DOT), MIXED)  # fmt: skip
        if CODEC_BITSET & 32:
            mine = _mine(read, codec, 5, MIXED)
            if _occurs(mine, MIXED):
                k = _joined(k, k_tile(int2_k, int2_k_scale, int2_k_zero, unit, slot, mine, PAGE_TOKENS, K_DIM,
                                      K_TILE, ROWS, 2, DOT), MIXED)  # fmt: skip
                v = _joined(v, v_tile(int2_v, int2_v_scale, unit, slot, mine, PAGE_TOKENS, V_DIM, V_TILE,
                                      ROWS, 2, INT2_GROUP, DOT), MIXED)  # fmt: skip
        next_slots = _slots_of(table, slot_codec, slot_row, page + PAGES, end, head, HEADS, MIXED)
        scores = tl.dot(k, q_tile, input_precision=PRECISION) * (scale * LOG2_E)
        scores = tl.where(read[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=0))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # -inf - -inf is no number
        probs = tl.exp2(scores - shift[None, :])
        decay = tl.exp2(top - shift)
        total = total * decay + tl.sum(probs, axis=0)
        if MASS:
            page_total = tl.sum(probs.reshape(PAGES, PAGE_TILE, QUERY_TILE), axis=1)
            some = step + tl.arange(0, PAGES)
            at = (row * HEADS * GROUP_HEADS + query_head).to(tl.int64)[None, :] * max_pages + some[:, None]
            store = (some < end)[:, None] & is_query[None, :]
            tl.store(page_lse + at, (shift[None, :] + tl.log2(page_total)) * LN_2, mask=store)
        acc = acc * decay[None, :] + tl.dot(tl.trans(v), probs.to(DOT), input_precision=PRECISION)
        top = new_top

    nonzero = tl.where(total > 0, total, 1.0)
    result = (split * rows + row).to(tl.int64) * HEADS * GROUP_HEADS + query_head
    out_mask = is_query[None, :] & (v_dim < V_DIM)[:, None]
    tl.store(out + result[None, :] * V_DIM + v_dim[:, None], acc / nonzero[None, :], mask=out_mask)
    tl.store(lse + result, tl.where(total > 0, (top + tl.log2(nonzero)) * LN_2, float("-inf")), mask=is_query)


def triton_paged_decode(
    q: Tensor,
    pool: PagePool,
    page_table: Tensor,
    tokens_in_page: Tensor,
    scale: float,
    *,
    page_lse: bool,
    first_token: Tensor | None = None,
    splits: int | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Launch the kernel and the merge; arguments and results as `attention.paged_decode_partials`.

    Args:
        q: ``(rows, query_heads, head_dim)`` float.
        pool: Where the pages are; its tensors must be contiguous.
        page_table: ``(rows, max_pages)`` int32.
        tokens_in_page: ``(rows, max_pages)`` int32.
        scale: Factor of the scores.
        page_lse: Also return each page's own log-sum-exp.
        first_token: ``(rows, max_pages)`` int32 or None.
        splits: Programs that share a (row, KV head); None picks a number that fills the device.
        launch: How the work is laid out; None: by the codecs of the pool.

    Raises:
        ValueError: A pool tensor is not contiguous.
    """
    rows, query_heads, _ = q.shape
    max_pages = page_table.shape[1]
    launch = launch or _layout(pool, q)
    constants = _constants(pool, q, launch.tile_tokens) | {"MASS": page_lse, "WINDOWED": first_token is not None}
    splits = splits or _pick_splits(q, rows * pool.shape[0], max_pages // constants["PAGES"], launch)
    out = torch.empty(splits, rows, query_heads, pool.v_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(splits, rows, query_heads, dtype=torch.float32, device=q.device)
    by_page = torch.empty(rows, query_heads, max_pages if page_lse else 0, dtype=torch.float32, device=q.device)
    if rows:
        paged_decode_kernel[(rows, pool.shape[0], splits)](
            q.contiguous(),
            page_table.int().contiguous(),
            tokens_in_page.int().contiguous(),
            page_table if first_token is None else first_token.int().contiguous(),
            pool.slot_codec,
            pool.slot_row,
            *_pool_tensors(pool, q),
            out,
            lse,
            by_page,
            float(scale),
            rows,
            max_pages,
            triton.cdiv(max_pages, splits),
            **constants,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )
    merged, merged_lse = triton_merge_partials(out, lse) if splits > 1 else (out[0], lse[0])
    return merged, merged_lse, by_page if page_lse else None


def _layout(pool: PagePool, q: Tensor) -> Launch:
    if len(pool.payloads) == 1:
        return ONE_CODEC
    return SEVERAL_IN_FP32 if q.dtype == torch.float32 else SEVERAL_CODECS


def _constants(pool: PagePool, q: Tensor, tile_tokens: int) -> dict[str, Any]:
    """The kernel's compile-time arguments for a pool and queries."""
    heads, page_tokens, head_dim = pool.shape
    group_heads, page_tile = q.shape[1] // heads, triton.next_power_of_2(page_tokens)
    dot, precision = _arithmetic(pool, q)
    return {
        "CODEC_BITSET": sum(1 << CODECS.index(codec) for codec in pool.payloads),
        "MIXED": len(pool.payloads) > 1,
        "HEADS": heads,
        "GROUP_HEADS": group_heads,
        "PAGE_TOKENS": page_tokens,
        "K_DIM": head_dim,
        "V_DIM": pool.v_dim,
        "INT4_GROUP": v_group_channels("int4", pool.v_dim),
        "INT2_GROUP": v_group_channels("int2", pool.v_dim),
        "PAGES": max(1, tile_tokens // page_tile),
        "PAGE_TILE": page_tile,
        "K_TILE": max(_MIN_DIM_TILE, triton.next_power_of_2(head_dim)),
        "V_TILE": max(_MIN_DIM_TILE, triton.next_power_of_2(pool.v_dim)),
        "QUERY_TILE": max(_MIN_QUERY_TILE, triton.next_power_of_2(group_heads)),
        "DOT": dot,
        "PRECISION": precision,
    }


def _arithmetic(pool: PagePool, q: Tensor) -> tuple[Any, str]:
    """Type of the operands of the products, and how fp32 ones are multiplied.

    bf16 pages alone are multiplied as they are. Codes become fp16: its three more bits of mantissa than bf16's keep
    the rounding below the error of int8, and codes convert to it without a conversion.
    """
    if q.dtype == torch.float32:
        return tl.float32, "tf32x3"
    if q.dtype == torch.bfloat16 and not CODE_BITS.keys() & pool.payloads.keys() and "fp8" not in pool.payloads:
        return (tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16), "ieee"  # bf16 is wrong in there
    return tl.float16, "ieee"


def _pool_tensors(pool: PagePool, absent: Tensor) -> list[Tensor]:
    """The tensors of all codecs in the kernel's order; ``absent`` stands in for codecs not in the pool."""
    tensors: list[Tensor] = []
    for codec in CODECS:
        payload = pool.payloads.get(codec)
        names = [field.name for field in payload_fields(codec, 1, 1, 8, torch.float32)]
        for name in names:
            tensor = absent if payload is None else payload.tensors()[name]
            if payload is not None and not tensor.is_contiguous():
                raise ValueError(f"pool tensor {codec}.{name} must be contiguous")
            tensors.append(tensor)
    return tensors


def _pick_splits(q: Tensor, programs: int, steps: int, launch: Launch) -> int:
    if not q.is_cuda:
        return 1
    target = launch.programs_per_sm * torch.cuda.get_device_properties(q.device).multi_processor_count
    return min(max(1, steps // _MIN_STEPS_PER_SPLIT), max(1, target // max(1, programs)))
