"""Pages of several codecs behind one numbering, as paged attention reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pikv_kernels.payload import CODECS, PagePayload, check_codec


@dataclasses.dataclass(frozen=True, eq=False)
class PagePool:
    """Pages that page tables address by slot id, whatever codec each is stored in.

    Every slot belongs to one of the payloads. The tensors may be written in place between two reads; the pool
    itself holds no other state.
    """

    payloads: Mapping[str, PagePayload]
    """The stored pages, one payload per codec in use, all of one (heads, page_tokens, head_dim)."""
    slot_codec: Tensor
    """``(slots,)`` int32: index into `CODECS` of the codec of each slot."""
    slot_row: Tensor
    """``(slots,)`` int32: row of each slot in the payload of its codec."""
    v_from_k: int = 0
    """Where V is not stored: how many of K's first channels are V (latent attention). 0: V is stored."""

    def __post_init__(self) -> None:
        if not self.payloads:
            raise ValueError("a page pool needs at least one payload")
        for codec, payload in self.payloads.items():
            check_codec(codec)
            if payload.codec != codec:
                raise ValueError(f"payload under {codec!r} holds {payload.codec!r} pages")
        shapes = {(p.heads, p.page_tokens, p.head_dim, p.v_dim) for p in self.payloads.values()}
        if len(shapes) != 1:
            raise ValueError(f"payloads differ in (heads, page_tokens, head_dim, v_dim): {sorted(shapes)}")
        *_, head_dim, v_dim = shapes.pop()
        if not 0 <= self.v_from_k <= head_dim or (self.v_from_k > 0) == (v_dim > 0):
            raise ValueError(f"v_from_k={self.v_from_k}: V is stored {v_dim} wide, K {head_dim}; one of them holds V")

    @staticmethod
    def of(payloads: Sequence[PagePayload], v_from_k: int = 0) -> PagePool:
        """Number the pages of ``payloads`` (one per codec) one payload after the other, from slot 0.

        Raises:
            ValueError: No payload, two of one codec, or payloads of different page shapes.
        """
        by_codec = {payload.codec: payload for payload in payloads}
        if len(by_codec) != len(payloads):
            raise ValueError(f"one payload per codec, got {[p.codec for p in payloads]}")
        counts = torch.tensor([payload.pages for payload in payloads], dtype=torch.int64)
        ids = torch.tensor([CODECS.index(p.codec) for p in payloads], dtype=torch.int32)
        rows = [torch.arange(count, dtype=torch.int32) for count in counts.tolist()]
        device = payloads[0].k.device if payloads else "cpu"
        return PagePool(
            by_codec,
            ids.repeat_interleave(counts).to(device),
            torch.cat(rows).to(device) if rows else ids.to(device),
            v_from_k,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(heads, page_tokens, head_dim)`` of every page."""
        payload = next(iter(self.payloads.values()))
        return payload.heads, payload.page_tokens, payload.head_dim

    @property
    def v_dim(self) -> int:
        """Channels of V as attention reads it."""
        return self.v_from_k or next(iter(self.payloads.values())).v_dim
