"""What a stored page is made of: the codec ladder, exact byte counts and a batch of stored pages.

A page is K and V of ``page_tokens`` consecutive token slots of one request in one layer.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

CODECS: tuple[str, ...] = ("native", "bf16", "int8", "fp8", "int4", "int2")
"""Codec names, most bytes and least error first: a sealed page only ever moves to the right."""

GROUP_CHANNELS = 32
"""Channels that share one V scale below 8 bits; fewer, their common divisor, where head_dim is no multiple."""

CODE_BITS: dict[str, int] = {"int8": 8, "int4": 4, "int2": 2}
"""Bits of one stored value, for the codecs that store integer codes."""


class FieldSpec(NamedTuple):
    """One tensor of a payload: its attribute name, dtype and shape without the page axis."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of this field in one page."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_codec(codec: str) -> None:
    """Raise ``ValueError`` naming the closest valid codec if ``codec`` is unknown."""
    if codec not in CODECS:
        close = difflib.get_close_matches(str(codec).lower(), CODECS, n=1, cutoff=0.0)[0]
        valid = ", ".join(CODECS)
        raise ValueError(f"unknown codec {codec!r}; did you mean {close!r}? valid codecs: {valid}")


def payload_fields(
    codec: str, heads: int, page_tokens: int, head_dim: int, native_dtype: torch.dtype, v_dim: int | None = None
) -> tuple[FieldSpec, ...]:
    """Describe the tensors of one page in the order in which `PagePayload.to_bytes` writes them.

    Args:
        codec: One of `CODECS`.
        heads: KV heads.
        page_tokens: Token slots of a page.
        head_dim: Channels of a K head.
        native_dtype: The model's dtype; only ``native`` depends on it.
        v_dim: Channels of a V head where it differs from K's; 0 where V is not stored at all.

    Raises:
        ValueError: Unknown codec, or a head_dim or v_dim whose codes do not fill whole bytes.
    """
    check_codec(codec)
    v_dim = head_dim if v_dim is None else v_dim
    if codec in ("native", "bf16"):
        dtype = native_dtype if codec == "native" else torch.bfloat16
        return (
            FieldSpec("k", dtype, (heads, page_tokens, head_dim)),
            FieldSpec("v", dtype, (heads, page_tokens, v_dim)),
        )
    bits = CODE_BITS.get(codec, 8)
    for name, channels in (("head_dim", head_dim), ("v_dim", v_dim)):
        if channels * bits % 8:
            per_byte = 8 // bits
            raise ValueError(f"{codec} packs {per_byte} channels in a byte: {name} must be a multiple, got {channels}")
    k_side = (heads, head_dim)
    v_side = (heads, page_tokens, v_dim // v_group_channels(codec, v_dim))
    fields = (
        FieldSpec("k", torch.uint8, (heads, page_tokens, head_dim * bits // 8)),
        FieldSpec("v", torch.uint8, (heads, page_tokens, v_dim * bits // 8)),
        FieldSpec("k_scale", torch.float16, k_side),
        FieldSpec("k_zero", torch.float16, k_side),
        FieldSpec("v_scale", torch.float16, v_side),
    )
    return tuple(field for field in fields if codec != "fp8" or field.name != "k_zero")


def v_group_channels(codec: str, v_dim: int) -> int:
    """Channels that share one V scale: the whole head at 8 bits, up to 32 below; at least 1."""
    return max(1, math.gcd(v_dim, GROUP_CHANNELS) if CODE_BITS.get(codec, 8) < 8 else v_dim)


def page_bytes(
    codec: str, heads: int, page_tokens: int, head_dim: int, native_dtype: torch.dtype, v_dim: int | None = None
) -> int:
    """Bytes of one stored page, equal to ``encode(...).nbytes`` of a single page.

    Raises:
        ValueError: As `payload_fields`.
    """
    return sum(field.nbytes for field in payload_fields(codec, heads, page_tokens, head_dim, native_dtype, v_dim))


@dataclasses.dataclass(frozen=True, eq=False)
class PagePayload:
    """A batch of pages in one codec; every tensor has a leading page axis.

    ``fp8`` stores bit patterns of float8_e4m3fn in ``k`` and ``v``, the integer codecs unsigned codes. Where several
    codes share a byte, the lowest bits of all bytes hold the first half (or quarter) of the channels, and so on:
    whoever unpacks them need not interleave.
    """

    codec: str
    """One of `CODECS`."""
    k: Tensor
    """``(pages, heads, page_tokens, head_dim)``; uint8, and narrower where codes share a byte, for codes."""
    v: Tensor
    """As ``k``, but perhaps of another width; of width 0 where V is not stored (see `PagePool.v_from_k`)."""
    k_scale: Tensor | None = None
    """``(pages, heads, head_dim)`` fp16; None for ``native`` and ``bf16``, like the two below."""
    k_zero: Tensor | None = None
    """``(pages, heads, head_dim)`` fp16; of the integer codecs only."""
    v_scale: Tensor | None = None
    """``(pages, heads, page_tokens, groups)`` fp16."""

    @staticmethod
    def zeros(
        codec: str,
        pages: int,
        heads: int,
        page_tokens: int,
        head_dim: int,
        native_dtype: torch.dtype,
        device: torch.device | str = "cpu",
        v_dim: int | None = None,
    ) -> PagePayload:
        """Allocate a pool of ``pages`` pages; fill it with `put`.

        Raises:
            ValueError: As `payload_fields`.
        """
        fields = payload_fields(codec, heads, page_tokens, head_dim, native_dtype, v_dim)
        tensors = {f.name: torch.zeros((pages, *f.shape), dtype=f.dtype, device=device) for f in fields}
        return PagePayload(codec, **tensors)

    @property
    def pages(self) -> int:
        """Number of pages in the batch."""
        return self.k.shape[0]

    @property
    def heads(self) -> int:
        """KV heads."""
        return self.k.shape[1]

    @property
    def page_tokens(self) -> int:
        """Token slots of a page."""
        return self.k.shape[2]

    @property
    def head_dim(self) -> int:
        """Channels of a K head."""
        return self.k.shape[3] * 8 // CODE_BITS.get(self.codec, 8)

    @property
    def v_dim(self) -> int:
        """Channels of a V head."""
        return self.v.shape[3] * 8 // CODE_BITS.get(self.codec, 8)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the batch."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by field name, in storage order."""
        names = ("k", "v", "k_scale", "k_zero", "v_scale")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def apply(self, function: Callable[[Tensor], Tensor]) -> PagePayload:
        """Return a payload of the same codec with ``function`` applied to every tensor."""
        return PagePayload(self.codec, **{name: function(t) for name, t in self.tensors().items()})

    def select(self, indices: Tensor) -> PagePayload:
        """Copy the pages at ``indices`` ``(n,)`` int64 or int32."""
        return self.apply(lambda tensor: tensor.index_select(0, indices))

    def put(self, indices: Tensor, pages: PagePayload) -> None:
        """Overwrite, in place, the pages at ``indices`` ``(n,)`` with the n pages given.

        Raises:
            ValueError: The codecs or the shapes of a page differ.
        """
        given = (pages.codec, tuple(pages.k.shape[1:]), tuple(pages.v.shape[1:]), pages.k.dtype)
        allowed = (self.codec, tuple(self.k.shape[1:]), tuple(self.v.shape[1:]), self.k.dtype)
        if given != allowed:
            raise ValueError(f"cannot put pages of {given} into a pool of {allowed}")
        source = pages.tensors()
        for name, tensor in self.tensors().items():
            tensor.index_copy_(0, indices.long(), source[name])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PagePayload:
        """Copy to ``device`` (no copy if already there)."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def to_bytes(self) -> Tensor:
        """Serialise to ``(pages, page_bytes)`` uint8, field after field within a page."""
        return torch.cat([_bytes_of(tensor) for tensor in self.tensors().values()], dim=1)

    @staticmethod
    def from_bytes(
        flat: Tensor,
        codec: str,
        heads: int,
        page_tokens: int,
        head_dim: int,
        native_dtype: torch.dtype,
        v_dim: int | None = None,
    ) -> PagePayload:
        """Rebuild what `to_bytes` wrote.

        Args:
            flat: ``(pages, width)`` uint8, width >= page_bytes; the rest of a row is ignored, so the rows may
                be slots of a byte pool that also holds pages of larger codecs.
            codec: One of `CODECS`.
            heads: KV heads.
            page_tokens: Token slots of a page.
            head_dim: Channels of a K head.
            native_dtype: The model's dtype.
            v_dim: Channels of a V head where it differs from K's.

        Raises:
            ValueError: Unknown codec, or rows that are not uint8 or too short.
        """
        fields = payload_fields(codec, heads, page_tokens, head_dim, native_dtype, v_dim)
        need = sum(field.nbytes for field in fields)
        if flat.dtype != torch.uint8 or flat.ndim != 2 or flat.shape[1] < need:
            given = f"{flat.dtype} {tuple(flat.shape)}"
            raise ValueError(f"{codec} pages need uint8 rows of at least {need} bytes, got {given}")
        pieces = flat[:, :need].split([field.nbytes for field in fields], dim=1)
        tensors = {f.name: _from_bytes(piece, f) for f, piece in zip(fields, pieces, strict=True)}
        return PagePayload(codec, **tensors)


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten(1).view(torch.uint8)


def _from_bytes(piece: Tensor, field: FieldSpec) -> Tensor:
    if field.nbytes == 0:
        return torch.empty(len(piece), *field.shape, dtype=field.dtype, device=piece.device)
    # clone: a slice of a wider row starts at an offset that the wider dtype may not accept as aligned
    return piece.clone(memory_format=torch.contiguous_format).view(field.dtype).unflatten(1, field.shape)
