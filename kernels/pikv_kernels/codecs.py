"""Encode and decode pages, and measure what that costs in accuracy.

All functions work on a batch of pages: ``k`` and ``v`` are float tensors
``(pages, heads, page_tokens, head_dim)``; V may have another width than K, or none.

``fp8`` stores float8_e4m3fn values, K scaled per head and channel, V per head and token, so that the largest is 448.
Integer codecs store unsigned codes. K is asymmetric, ``zero + scale * code`` per head and channel: its
channels are biased. V is symmetric, ``scale * (code - levels / 2)`` per head, token and channel group: its
groups are not, and a zero there costs more bytes than the error it saves (at 4 bits: 0.5 bit per value for a
fifth less error).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pikv_kernels.payload import (
    CODE_BITS,
    CODECS,
    PagePayload,
    check_codec,
    page_bytes,
    payload_fields,
    v_group_channels,
)

__all__ = ["CODECS", "PagePayload", "codec_error", "decode", "encode", "page_bytes", "reencode"]

_FP16_MAX, _FP8_MAX = 65504.0, 448.0
# Half a unit in the last place of fp16: relative for normal numbers, absolute for subnormal ones.
_FP16_HALF_ULP, _FP16_TINY_HALF_ULP = 2.0**-11, 2.0**-25


def encode(codec: str, k: Tensor, v: Tensor) -> PagePayload:
    """Store pages in ``codec``.

    Args:
        codec: One of `CODECS`.
        k: ``(pages, heads, page_tokens, head_dim)`` float, finite. Codes saturate beyond +-65504.
        v: Same dtype, and the same shape but for head_dim, which may be another one or 0.

    Returns:
        A payload that shares no memory with the input unless the codec is the input's own dtype.

    Raises:
        ValueError: Unknown codec, mismatched or non-4D tensors, or a width whose codes do not fill whole bytes.
    """
    check_codec(codec)
    if k.ndim != 4 or k.shape[:3] != v.shape[:3] or v.ndim != 4 or k.dtype != v.dtype:
        raise ValueError(
            "k and v must share one shape (pages, heads, page_tokens, any width) and dtype, "
            f"got {tuple(k.shape)} {k.dtype} and {tuple(v.shape)} {v.dtype}"
        )
    if codec in ("native", "bf16"):
        dtype = k.dtype if codec == "native" else torch.bfloat16
        return PagePayload(codec, k.to(dtype), v.to(dtype))
    _, heads, page_tokens, head_dim = k.shape
    payload_fields(codec, heads, page_tokens, head_dim, k.dtype, v.shape[3])
    if codec == "fp8":
        k_codes, k_scale = _fp8_codes(k.float(), 2)
        v_codes, v_scale = _fp8_codes(v.float(), 3)
        return PagePayload(codec, k_codes, v_codes, k_scale.squeeze(2), None, v_scale)
    bits = CODE_BITS[codec]
    k_codes, k_scale, k_zero = _quantise_channels(k.float(), bits)
    v_codes, v_scale = _quantise_tokens(v.float(), bits, v_group_channels(codec, v.shape[3]))
    return PagePayload(codec, _packed(k_codes, bits), _packed(v_codes, bits), k_scale, k_zero, v_scale)


def decode(payload: PagePayload, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Read pages back.

    Args:
        payload: Pages in any codec.
        dtype: Float dtype of the result; integer codecs are expanded in fp32 first.

    Returns:
        ``(k, v)``, each ``(pages, heads, page_tokens, head_dim)``.
    """
    if payload.codec in ("native", "bf16"):
        return payload.k.to(dtype), payload.v.to(dtype)
    assert payload.k_scale is not None and payload.v_scale is not None
    k_scale, v_scale = payload.k_scale.float().unsqueeze(2), payload.v_scale.float().unsqueeze(4)
    if payload.k_zero is None:
        k, v = (codes.view(torch.float8_e4m3fn).float() for codes in (payload.k, payload.v))
        return k.mul_(k_scale).to(dtype), v.mul_(v_scale.squeeze(4)).to(dtype)
    bits = CODE_BITS[payload.codec]
    k = _unpacked(payload.k, bits).float()
    torch.addcmul(payload.k_zero.float().unsqueeze(2), k, k_scale, out=k)  # a fresh buffer costs more than this
    v_codes = _unpacked(payload.v, bits)
    group = v_group_channels(payload.codec, v_codes.shape[3])
    v = v_codes.float().sub_((2**bits - 1) / 2).unflatten(3, (v_scale.shape[3], group)).mul_(v_scale).flatten(3)
    return k.to(dtype), v.to(dtype)


def reencode(payload: PagePayload, codec: str) -> PagePayload:
    """Move pages down the ladder, through their decoded values (errors add up as they do in use).

    Raises:
        ValueError: Unknown codec, or one above the pages' own: what is lost cannot come back.
    """
    check_codec(codec)
    if codec != payload.codec:
        check_down(payload.codec, codec)
    return payload if codec == payload.codec else encode(codec, *decode(payload, torch.float32))


def check_down(before: str, after: str) -> None:
    """Raise ``ValueError`` unless the second codec is further down the ladder than the first."""
    if CODECS.index(after) <= CODECS.index(before):
        raise ValueError(f"pages only move down the ladder {CODECS}: {before} cannot become {after}")


def codec_error(k: Tensor, v: Tensor, codec: str) -> Tensor:
    """Relative error of storing pages in ``codec``: the mean over K and V of ``||X - X^||_F / ||X||_F``;
    that of K alone where V is not stored.

    Args:
        k: ``(pages, heads, page_tokens, head_dim)`` float.
        v: As for `encode`.
        codec: One of `CODECS`.

    Returns:
        ``(pages,)`` fp32; 0 for ``native`` and for pages of zeros.

    Raises:
        ValueError: As `encode`.
    """
    k_back, v_back = decode(encode(codec, k, v), torch.float32)
    k_error = _relative_error(k.float(), k_back)
    return 0.5 * (k_error + _relative_error(v.float(), v_back)) if v.shape[3] else k_error


def _relative_error(x: Tensor, x_back: Tensor) -> Tensor:
    norm = x.flatten(1).norm(dim=1)
    return (x - x_back).flatten(1).norm(dim=1) / norm.clamp_min(torch.finfo(torch.float32).tiny)


def _quantise_channels(k: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero of fp32 K, asymmetric over the tokens of a page.

    The zero is rounded down and the scale up, so nothing is clipped and the error is at most half a scale.
    """
    low, high = k.amin(2, keepdim=True), k.amax(2, keepdim=True)
    zero = (low - low.abs() * _FP16_HALF_ULP - _FP16_TINY_HALF_ULP).clamp(-_FP16_MAX, _FP16_MAX).half()
    levels = 2**bits - 1
    scale = _fp16_not_below((high - zero.float()) / levels)
    codes = _codes((k - zero.float()) / _divisor(scale), levels)
    return codes, scale.squeeze(2), zero.squeeze(2)


def _quantise_tokens(v: Tensor, bits: int, group_channels: int) -> tuple[Tensor, Tensor]:
    """Codes and scale of fp32 V, symmetric over groups of channels; all 2**bits codes are used."""
    grouped = v.unflatten(3, (v.shape[3] // group_channels, group_channels))
    levels = 2**bits - 1
    scale = _fp16_not_below(grouped.abs().amax(4, keepdim=True) * (2 / levels))
    codes = _codes(grouped / _divisor(scale) + levels / 2, levels)
    return codes.flatten(3), scale.squeeze(4)


def _codes(x: Tensor, levels: int) -> Tensor:
    return x.round_().clamp_(0, levels).to(torch.uint8)


def _fp16_not_below(step: Tensor) -> Tensor:
    return (step * (1 + _FP16_HALF_ULP) + _FP16_TINY_HALF_ULP).clamp(0.0, _FP16_MAX).half()


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1).float()


def _fp8_codes(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Bit patterns of fp32 values in fp8 (rounded to the nearest even), and scales that use its range along an axis."""
    largest = x.abs().amax(axis, keepdim=True) if x.shape[axis] else x.new_zeros(*x.shape[:axis], 0)
    scale = _fp16_not_below(largest / _FP8_MAX)
    scaled = (x / _divisor(scale)).clamp_(-_FP8_MAX, _FP8_MAX)
    return scaled.to(torch.float8_e4m3fn).view(torch.uint8), scale


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Several codes in a byte: the first part of the channels in the lowest bits of all bytes, and so on."""
    if bits == 8:
        return codes
    first, *others = codes.chunk(8 // bits, dim=-1)
    for i, part in enumerate(others, start=1):
        first = first | (part << (i * bits))
    return first


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], dim=-1)
