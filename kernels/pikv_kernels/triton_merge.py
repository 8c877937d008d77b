"""Triton kernels of `merge.merge_partials` and `attention.page_mass`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_DIM_TILE, _PAGE_TILE = 256, 256


@triton.jit
def merge_kernel(outs, lses, out, lse, parts, items, dim, PART_TILE: tl.constexpr, DIM_TILE: tl.constexpr):
    """One program merges all parts of one item (a row and head) over one tile of channels.

    ``outs (parts, items, dim)`` and ``lses (parts, items)`` -> ``out (items, dim)`` and ``lse (items)``; all parts'
    weights are known before the first value is read, so that every value is read once.
    """
    item, channel = tl.program_id(0), tl.program_id(1) * DIM_TILE + tl.arange(0, DIM_TILE)
    part = tl.arange(0, PART_TILE)
    some = tl.load(lses + part * items + item, mask=part < parts, other=float("-inf")).to(tl.float32)
    top = tl.max(some, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp(some - top)
    total = tl.sum(weight, 0)
    offset = (part.to(tl.int64) * items + item)[:, None] * dim + channel[None, :]
    read = (weight > 0)[:, None] & (channel < dim)[None, :]  # what an empty part holds may be NaN
    values = tl.load(outs + offset, mask=read, other=0.0).to(tl.float32)
    merged = tl.sum(values * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + item.to(tl.int64) * dim + channel, merged, mask=channel < dim)
    if tl.program_id(1) == 0:
        tl.store(lse + item, tl.where(total > 0, top + tl.log(total), float("-inf")))


@triton.jit
def page_mass_kernel(page_lse, lse, mass, heads, pages, PAGE_TILE: tl.constexpr):
    """One program: one row, one tile of its pages; the mean over heads of exp(page_lse - lse)."""
    row, page = tl.program_id(0), tl.program_id(1) * PAGE_TILE + tl.arange(0, PAGE_TILE)
    share = tl.zeros((PAGE_TILE,), tl.float32)
    for head in range(heads):
        whole = tl.load(lse + row * heads + head)
        at = (row * heads + head).to(tl.int64) * pages + page
        part = tl.load(page_lse + at, mask=page < pages, other=float("-inf"))
        share += tl.exp(part - tl.where(whole == float("-inf"), 0.0, whole))
    tl.store(mass + row.to(tl.int64) * pages + page, share / heads, mask=page < pages)


def triton_merge_partials(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the merge; arguments and results as `merge.merge_partials`."""
    parts, shape, dim = outs.shape[0], outs.shape[1:-1], outs.shape[-1]
    items = shape.numel()
    out = torch.empty(*shape, dim, dtype=torch.float32, device=outs.device)
    lse = torch.empty(shape, dtype=torch.float32, device=outs.device)
    if parts == 0:
        return out.zero_(), lse.fill_(-torch.inf)
    if items:
        tile = min(_DIM_TILE, triton.next_power_of_2(max(dim, 1)))
        part_tile = triton.next_power_of_2(parts)
        while tile > 16 and tile * part_tile > 16384:  # values a program holds in registers
            tile //= 2
        merge_kernel[(items, triton.cdiv(max(dim, 1), tile))](
            outs.contiguous(), lses.contiguous(), out, lse, parts, items, dim,
            PART_TILE=part_tile, DIM_TILE=tile, num_warps=4,
        )  # fmt: skip
    return out, lse


def triton_page_mass(page_lse: Tensor, lse: Tensor) -> Tensor:
    """Launch the averaging; arguments and result as `attention.page_mass`."""
    rows, heads, pages = page_lse.shape
    mass = torch.empty(rows, pages, dtype=torch.float32, device=page_lse.device)
    if mass.numel():
        tile = min(_PAGE_TILE, triton.next_power_of_2(pages))
        page_mass_kernel[(rows, triton.cdiv(pages, tile))](
            page_lse.contiguous(), lse.contiguous(), mass, heads, pages, PAGE_TILE=tile, num_warps=4
        )
    return mass
