"""Loading pages of every codec as tiles, for the kernels that read them.

Importing this module imports triton. What the interpreter and the compiler both need: bf16 is upcast right after its
load where it is interpreted (its arithmetic is wrong there), no autotune, no libdevice, no inline assembly.
"""

# ruff: noqa: SIM102, SIM300 - an outer `if` on a constexpr drops code from the build, which `and` would not; DOT is no constant

from __future__ import annotations

import triton
import triton.language as tl

FP16_MAX = tl.constexpr(65504.0)


@triton.jit
def unsigned(stored, SHIFT: tl.constexpr, BITS: tl.constexpr, DOT: tl.constexpr):
    """Codes of BITS bits, SHIFT bits up in their bytes, as floats.

    In fp16, `1024 | bits` is the number 1024 + bits: two integer operations and one multiply-add that undoes the shift
    as well, all of them on two values at a time, where a conversion runs at a fraction of the rate.
    """
    mask: tl.constexpr = (2**BITS - 1) << SHIFT
    down: tl.constexpr = 2.0**-SHIFT
    if DOT == tl.float16:
        raised = ((stored.to(tl.int16) & mask) | 0x6400).to(tl.float16, bitcast=True)
        if SHIFT == 0:
            values = raised - tl.full((), 1024.0, tl.float16)
        else:
            step = tl.full(raised.shape, down, tl.float16)
            values = tl.fma(raised, step, tl.full(raised.shape, -1024.0 * down, tl.float16))
    else:
        values = ((stored & mask) >> SHIFT).to(tl.float32)
    return values


@triton.jit
def whole(stored, ROWS: tl.constexpr, DIM_TILE: tl.constexpr, BITS: tl.constexpr, DOT: tl.constexpr):
    """Values (ROWS, DIM_TILE) of the codes in bytes (ROWS, DIM_TILE * BITS / 8): the lowest bits of all bytes, then
    the next higher. No value leaves the thread that loaded its byte."""
    if BITS == 8:
        values = unsigned(stored, 0, 8, DOT)
    elif BITS == 4:
        halves = tl.join(unsigned(stored, 0, 4, DOT), unsigned(stored, 4, 4, DOT))
        values = halves.permute(0, 2, 1).reshape(ROWS, DIM_TILE)
    else:
        low = tl.join(unsigned(stored, 0, 2, DOT), unsigned(stored, 2, 2, DOT))
        high = tl.join(unsigned(stored, 4, 2, DOT), unsigned(stored, 6, 2, DOT))
        values = tl.join(low, high).permute(0, 3, 2, 1).reshape(ROWS, DIM_TILE)
    return values


@triton.jit
def code_tile(base, unit, slot, read, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr, DIM_TILE: tl.constexpr,
              ROWS: tl.constexpr, BITS: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """Codes (ROWS, DIM_TILE) of token slots, as floats; `unit` (ROWS,) counts heads over all pages of the payload."""
    width: tl.constexpr = DIM * BITS // 8
    start = ((unit * PAGE_TOKENS + slot) * width)[:, None]
    if DIM == DIM_TILE:
        stored = tl.load(base + start + tl.arange(0, width)[None, :], mask=read[:, None], other=0)
        values = whole(stored, ROWS, DIM_TILE, BITS, DOT)
    else:  # the parts of a byte do not end where those of the tile do: every channel loads its byte
        dim = tl.arange(0, DIM_TILE)
        stored = tl.load(base + start + (dim % width)[None, :], mask=read[:, None] & (dim < DIM)[None, :], other=0)
        shifted = (stored.to(tl.int32) >> ((dim // width) * BITS)[None, :]) & (2**BITS - 1)
        values = unsigned(shifted, 0, BITS, DOT)
    return values


@triton.jit
def float_tile(base, unit, slot, read, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr, DIM_TILE: tl.constexpr,
               DOT: tl.constexpr):  # fmt: skip
    """Values (ROWS, DIM_TILE) of token slots stored as floats; in fp16 they saturate."""
    dim = tl.arange(0, DIM_TILE)
    offset = (unit * PAGE_TOKENS + slot)[:, None] * DIM + dim[None, :]
    loaded = tl.load(base + offset, mask=read[:, None] & (dim < DIM)[None, :], other=0.0)
    if loaded.dtype == tl.bfloat16:
        if DOT == tl.float16:
            loaded = tl.minimum(tl.maximum(loaded.to(tl.float32), -FP16_MAX), FP16_MAX)
    return loaded.to(DOT)


@triton.jit
def fp8_tile(base, unit, slot, read, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr, DIM_TILE: tl.constexpr,
             DOT: tl.constexpr):  # fmt: skip
    """Values / 256 (ROWS, DIM_TILE) of token slots in fp8 (4 exponent bits, 3 of mantissa), by moving their bits to
    where fp16 has them: the exponents' biases differ by 8. Needs no device with fp8, and minds subnormal numbers."""
    dim = tl.arange(0, DIM_TILE)
    offset = (unit * PAGE_TOKENS + slot)[:, None] * DIM + dim[None, :]
    wide = tl.load(base + offset, mask=read[:, None] & (dim < DIM)[None, :], other=0).to(tl.int16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return bits.to(tl.float16, bitcast=True).to(DOT)


@triton.jit
def k_side(base, unit, read, DIM: tl.constexpr, DIM_TILE: tl.constexpr, DOT: tl.constexpr):
    """Per-channel numbers of K (ROWS, DIM_TILE): the same line of cache for all token slots of a page."""
    dim = tl.arange(0, DIM_TILE)
    offset = unit[:, None] * DIM + dim[None, :]
    return tl.load(base + offset, mask=read[:, None] & (dim < DIM)[None, :], other=0.0).to(DOT)


@triton.jit
def k_tile(stored, scale, zero, unit, slot, read, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr,
           DIM_TILE: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """K (ROWS, DIM_TILE) of integer codes: zero + scale * code; 0 where not read."""
    codes = code_tile(stored, unit, slot, read, PAGE_TOKENS, DIM, DIM_TILE, ROWS, BITS, DOT)
    step = k_side(scale, unit, read, DIM, DIM_TILE, DOT)
    return tl.fma(codes, step, k_side(zero, unit, read, DIM, DIM_TILE, DOT))


@triton.jit
def v_scaled(values, scale, unit, slot, read, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr, DIM_TILE: tl.constexpr,
             ROWS: tl.constexpr, GROUP: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """Values (ROWS, DIM_TILE) times the scale of their token and group of GROUP channels."""
    groups: tl.constexpr = DIM // GROUP
    if groups == 1:
        step = tl.load(scale + unit * PAGE_TOKENS + slot, mask=read, other=0.0).to(DOT)
        scaled = values * step[:, None]
    else:
        # One load per group, not per channel: all channels of a group would load the same number.
        group = tl.arange(0, DIM_TILE // GROUP)
        offset = (unit * PAGE_TOKENS + slot)[:, None] * groups + group[None, :]
        step = tl.load(scale + offset, mask=read[:, None] & (group < groups)[None, :], other=0.0).to(DOT)
        scaled = (values.reshape(ROWS, DIM_TILE // GROUP, GROUP) * step[:, :, None]).reshape(ROWS, DIM_TILE)
    return scaled


@triton.jit
def v_tile(stored, scale, unit, slot, read, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr, DIM_TILE: tl.constexpr,
           ROWS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """V (ROWS, DIM_TILE) of integer codes: scale * (code - middle); 0 where not read."""
    codes = code_tile(stored, unit, slot, read, PAGE_TOKENS, DIM, DIM_TILE, ROWS, BITS, DOT)
    middle: tl.constexpr = (2**BITS - 1) / 2
    centred = codes - tl.full((), middle, DOT)
    return v_scaled(centred, scale, unit, slot, read, PAGE_TOKENS, DIM, DIM_TILE, ROWS, GROUP, DOT)


@triton.jit
def fp8_k_tile(stored, scale, unit, slot, read, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr,
               DIM_TILE: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """K (ROWS, DIM_TILE) of fp8 codes; 0 where not read."""
    step = k_side(scale, unit, read, DIM, DIM_TILE, DOT) * tl.full((), 256.0, DOT)
    return fp8_tile(stored, unit, slot, read, PAGE_TOKENS, DIM, DIM_TILE, DOT) * step


@triton.jit
def fp8_v_tile(stored, scale, unit, slot, read, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr,
               DIM_TILE: tl.constexpr, ROWS: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """V (ROWS, DIM_TILE) of fp8 codes; 0 where not read."""
    values = fp8_tile(stored, unit, slot, read, PAGE_TOKENS, DIM, DIM_TILE, DOT) * tl.full((), 256.0, DOT)
    return v_scaled(values, scale, unit, slot, read, PAGE_TOKENS, DIM, DIM_TILE, ROWS, DIM, DOT)
