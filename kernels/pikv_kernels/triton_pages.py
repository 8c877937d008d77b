"""Triton kernels of `pages`: new tokens into open pages, and pages into a lower codec."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pikv_kernels.payload import CODE_BITS, CODECS, PagePayload, v_group_channels
from pikv_kernels.triton_tiles import float_tile, fp8_k_tile, fp8_v_tile, k_tile, v_tile

_TILE = 1024
FP16_MAX = tl.constexpr(65504.0)
FP8_MAX = tl.constexpr(448.0)
HALF_ULP = tl.constexpr(2.0**-11)
TINY_HALF_ULP = tl.constexpr(2.0**-25)
TO_INTEGER = tl.constexpr(1.5 * 2.0**23)
"""Added to a small fp32 number and subtracted again it rounds to the nearest even integer."""


@triton.jit
def store_kernel(values, rows, slots, pages, HEADS: tl.constexpr, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr,
                 TILE: tl.constexpr):  # fmt: skip
    """One program copies a tile of one token's ``(HEADS, DIM)`` values into its slot."""
    token, at = tl.program_id(0), tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = at < HEADS * DIM
    value = tl.load(values + token.to(tl.int64) * (HEADS * DIM) + at, mask=inside).to(tl.float32)
    row, slot = tl.load(rows + token).to(tl.int64), tl.load(slots + token)
    offset = ((row * HEADS + at // DIM) * PAGE_TOKENS + slot) * DIM + at % DIM
    tl.store(pages + offset, value.to(pages.dtype.element_ty), mask=inside)


@triton.jit
def _not_below(step):
    return tl.minimum(step * (1 + HALF_ULP) + TINY_HALF_ULP, FP16_MAX).to(tl.float16)


@triton.jit
def _quotient(x, scale):
    wide = scale.to(tl.float32)
    return tl.div_rn(x, tl.where(wide > 0, wide, 1.0))


@triton.jit
def _codes(x, LEVELS: tl.constexpr):
    near = tl.minimum(tl.maximum(x, -1.0), LEVELS + 1.0)
    return tl.minimum(tl.maximum((near + TO_INTEGER) - TO_INTEGER, 0.0), LEVELS).to(tl.int32)


@triton.jit
def _fp8_bits(x):
    """Bits of e4m3, rounded to the nearest even, of fp32 values of at most 448."""
    size = tl.abs(x)
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    small = (size * 512.0 + TO_INTEGER) - TO_INTEGER
    sign = tl.where(x < 0, 128, 0)
    return tl.where(size < 2.0**-6, small.to(tl.int32), normal) | sign


@triton.jit
def _store_codes(base, codes, unit, slot, inside, ROWS: tl.constexpr, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr,
                 BITS: tl.constexpr):  # fmt: skip
    """Codes (ROWS, DIM), several in a byte: the first half (quarter) of the channels in the low bits, and so on."""
    width: tl.constexpr = DIM * BITS // 8
    if BITS == 4:
        low, high = codes.reshape(ROWS, 2, width).permute(0, 2, 1).split()
        packed = low | (high << 4)
    elif BITS == 2:
        even, odd = codes.reshape(ROWS, 2, 2, width).permute(0, 3, 1, 2).split()
        first, third = even.split()
        second, fourth = odd.split()
        packed = first | (second << 2) | (third << 4) | (fourth << 6)
    else:
        packed = codes
    offset = ((unit * PAGE_TOKENS + slot) * width)[:, None] + tl.arange(0, width)[None, :]
    tl.store(base + offset, packed.to(tl.uint8), mask=inside[:, None])


@triton.jit
def recode_kernel(
    source_rows, target_rows,
    from_k, from_v, from_k_scale, from_k_zero, from_v_scale,
    to_k, to_v, to_k_scale, to_k_zero, to_v_scale,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, HEADS: tl.constexpr, PAGE_TOKENS: tl.constexpr, ROWS: tl.constexpr,
    K_DIM: tl.constexpr, V_DIM: tl.constexpr, FROM_BITS: tl.constexpr, FROM_GROUP: tl.constexpr,
    TO_BITS: tl.constexpr, TO_GROUP: tl.constexpr,
):  # fmt: skip
    """One program: one head of one page, K and then V; codecs by their place in `CODECS`. The arithmetic is that of
    `codecs.encode`, operation by operation, so that both write the same codes."""
    page, head = tl.program_id(0), tl.program_id(1)
    slot = tl.arange(0, ROWS)
    inside = slot < PAGE_TOKENS
    here = tl.load(source_rows + page).to(tl.int64) * HEADS + head
    there = tl.load(target_rows + page).to(tl.int64) * HEADS + head
    unit, k_dim = tl.zeros((ROWS,), tl.int64) + here, tl.arange(0, K_DIM)
    if SOURCE < 2:
        k = float_tile(from_k, unit, slot, inside, PAGE_TOKENS, K_DIM, K_DIM, tl.float32)
        v = float_tile(from_v, unit, slot, inside, PAGE_TOKENS, V_DIM, V_DIM, tl.float32)
    elif SOURCE == 3:
        k = fp8_k_tile(from_k, from_k_scale, unit, slot, inside, PAGE_TOKENS, K_DIM, K_DIM, tl.float32)
        v = fp8_v_tile(from_v, from_v_scale, unit, slot, inside, PAGE_TOKENS, V_DIM, V_DIM, ROWS, tl.float32)
    else:
        k = k_tile(from_k, from_k_scale, from_k_zero, unit, slot, inside, PAGE_TOKENS, K_DIM, K_DIM, ROWS,
                   FROM_BITS, tl.float32)  # fmt: skip
        v = v_tile(from_v, from_v_scale, unit, slot, inside, PAGE_TOKENS, V_DIM, V_DIM, ROWS, FROM_BITS,
                   FROM_GROUP, tl.float32)  # fmt: skip
    unit = tl.zeros((ROWS,), tl.int64) + there
    if TARGET == 1:
        k_at = ((unit * PAGE_TOKENS + slot) * K_DIM)[:, None] + k_dim[None, :]
        v_at = ((unit * PAGE_TOKENS + slot) * V_DIM)[:, None] + tl.arange(0, V_DIM)[None, :]
        tl.store(to_k + k_at, k.to(tl.bfloat16), mask=inside[:, None])
        tl.store(to_v + v_at, v.to(tl.bfloat16), mask=inside[:, None])
    else:
        groups: tl.constexpr = V_DIM // TO_GROUP
        size = tl.max(tl.abs(v).reshape(ROWS, groups, TO_GROUP), 2)
        if TARGET == 3:
            k_scale = _not_below(tl.div_rn(tl.max(tl.abs(k), 0), FP8_MAX))
            v_scale = _not_below(tl.div_rn(size, FP8_MAX))
            k_scaled = tl.minimum(tl.maximum(_quotient(k, k_scale[None, :]), -FP8_MAX), FP8_MAX)
            v_scaled = tl.minimum(tl.maximum(_quotient(v, v_scale), -FP8_MAX), FP8_MAX)
            k_codes, v_codes = _fp8_bits(k_scaled), _fp8_bits(v_scaled)
        else:
            levels: tl.constexpr = 2.0**TO_BITS - 1
            low = tl.min(tl.where(inside[:, None], k, float("inf")), 0)
            high = tl.max(tl.where(inside[:, None], k, float("-inf")), 0)
            zero = low - tl.abs(low) * HALF_ULP - TINY_HALF_ULP
            k_zero = tl.minimum(tl.maximum(zero, -FP16_MAX), FP16_MAX).to(tl.float16)
            k_scale = _not_below(tl.maximum(tl.div_rn(high - k_zero.to(tl.float32), levels), 0.0))
            k_codes = _codes(_quotient(k - k_zero.to(tl.float32)[None, :], k_scale[None, :]), levels)
            tl.store(to_k_zero + there * K_DIM + k_dim, k_zero)
            v_scale = _not_below(size * (2 / levels))
            grouped = _quotient(v.reshape(ROWS, groups, TO_GROUP), v_scale[:, :, None]).reshape(ROWS, V_DIM)
            v_codes = _codes(grouped + levels / 2, levels)
        tl.store(to_k_scale + there * K_DIM + k_dim, k_scale)
        group_at = ((unit * PAGE_TOKENS + slot) * groups)[:, None] + tl.arange(0, groups)[None, :]
        tl.store(to_v_scale + group_at, v_scale, mask=inside[:, None])
        _store_codes(to_k, k_codes, unit, slot, inside, ROWS, PAGE_TOKENS, K_DIM, TO_BITS)
        _store_codes(to_v, v_codes, unit, slot, inside, ROWS, PAGE_TOKENS, V_DIM, TO_BITS)


def triton_store_tokens(payload: PagePayload, rows: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Launch the copies of K and V; arguments as `pages.store_tokens`."""
    for values, pages in ((k, payload.k), (v, payload.v)):
        width = payload.heads * pages.shape[3]
        if len(rows) and width:
            tile = min(_TILE, triton.next_power_of_2(width))
            store_kernel[(len(rows), triton.cdiv(width, tile))](
                values.contiguous(), rows, slots, pages,
                HEADS=payload.heads, PAGE_TOKENS=payload.page_tokens, DIM=pages.shape[3], TILE=tile, num_warps=4,
            )  # fmt: skip


def triton_recode_pages(source: PagePayload, source_rows: Tensor, target: PagePayload, target_rows: Tensor) -> None:
    """Launch the recoding; arguments as `pages.recode_pages`, both widths powers of 2."""
    if len(source_rows) == 0:
        return
    fields = [payload.tensors() for payload in (source, target)]
    names = ("k", "v", "k_scale", "k_zero", "v_scale")
    tensors = [field.get(name, field["k"]) for field in fields for name in names]
    recode_kernel[(len(source_rows), source.heads)](
        source_rows, target_rows, *tensors,
        SOURCE=CODECS.index(source.codec), TARGET=CODECS.index(target.codec), HEADS=source.heads,
        PAGE_TOKENS=source.page_tokens, ROWS=triton.next_power_of_2(source.page_tokens),
        K_DIM=source.head_dim, V_DIM=source.v_dim,
        FROM_BITS=CODE_BITS.get(source.codec, 8), FROM_GROUP=v_group_channels(source.codec, source.v_dim),
        TO_BITS=CODE_BITS.get(target.codec, 8), TO_GROUP=v_group_channels(target.codec, target.v_dim),
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
