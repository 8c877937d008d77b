"""Writing pages: new tokens into open pages, and sealed pages from one payload into another, down the ladder."""

from __future__ import annotations

from torch import Tensor

from pikv_kernels.codecs import check_down, reencode
from pikv_kernels.dispatch import use_triton
from pikv_kernels.payload import PagePayload


def store_tokens(payload: PagePayload, rows: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Write new K and V into open pages, in place.

    Args:
        payload: Pages of codec ``native`` or ``bf16``.
        rows: ``(tokens,)`` integer: the page of each token.
        slots: ``(tokens,)`` integer: its token slot in the page. No two tokens may share a slot.
        k: ``(tokens, heads, head_dim)`` float.
        v: ``(tokens, heads, v_dim)`` float.

    Raises:
        ValueError: Pages that store codes, or shapes that do not fit together.
    """
    expected = (len(rows), payload.heads)
    if payload.codec not in ("native", "bf16"):
        raise ValueError(f"tokens are written into native or bf16 pages, not {payload.codec}")
    if k.shape != (*expected, payload.head_dim) or v.shape != (*expected, payload.v_dim) or rows.shape != slots.shape:
        raise ValueError(
            f"k {tuple(k.shape)}, v {tuple(v.shape)}, rows {tuple(rows.shape)} and slots {tuple(slots.shape)} must be "
            f"(tokens, {payload.heads}, {payload.head_dim}), (tokens, {payload.heads}, {payload.v_dim}) and "
            "twice (tokens,)"
        )
    if use_triton(payload.k):
        from pikv_kernels.triton_pages import triton_store_tokens  # triton may be missing elsewhere

        triton_store_tokens(payload, rows, slots, k, v)
        return
    where = rows.long(), slice(None), slots.long()
    payload.k[where], payload.v[where] = k.to(payload.k.dtype), v.to(payload.v.dtype)


def recode_pages(source: PagePayload, source_rows: Tensor, target: PagePayload, target_rows: Tensor) -> None:
    """Seal or demote: write pages of one payload, in its lower codec, into rows of another, in place.

    On a GPU one kernel reads each page once, and its floats exist in registers only.

    Args:
        source: Pages in any codec.
        source_rows: ``(n,)`` integer.
        target: Pages of the same shape in a codec further down the ladder.
        target_rows: ``(n,)`` integer, no two alike.

    Raises:
        ValueError: A codec that is not further down, or different page shapes or numbers of rows.
    """
    check_down(source.codec, target.codec)
    shapes = [(p.heads, p.page_tokens, p.head_dim, p.v_dim) for p in (source, target)]
    if shapes[0] != shapes[1] or source_rows.shape != target_rows.shape:
        raise ValueError(
            f"pages (heads, page_tokens, head_dim, v_dim) {shapes[0]} in {tuple(source_rows.shape)} rows cannot become "
            f"{shapes[1]} in {tuple(target_rows.shape)}"
        )
    if use_triton(source.k) and all(_power_of_2(width) for width in shapes[0][2:]):
        from pikv_kernels.triton_pages import triton_recode_pages

        triton_recode_pages(source, source_rows, target, target_rows)
    else:  # the kernel splits the channels into halves and quarters: widths that are no powers of 2 go through torch
        target.put(target_rows, reencode(source.select(source_rows), target.codec))


def _power_of_2(number: int) -> bool:
    return number >= 16 and number & (number - 1) == 0
