"""Rows of a growing payload: which are free, and room for more."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pikv_kernels import PagePayload

I4 = NDArray[np.int32]


class PayloadRows:
    """The pages stored in one codec: a payload that grows by doubling, and a stack of its free rows; pinned: in host
    memory that a GPU copies from and to directly."""

    def __init__(
        self,
        codec: str,
        page_shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        pinned: bool = False,
        v_dim: int | None = None,
    ) -> None:
        self.codec = codec
        self._pinned = pinned
        self._shape, self._v_dim = page_shape, v_dim
        self._dtype = dtype
        self._device = device
        self._free: list[int] = []
        self.payload = self._zeros(0)

    @property
    def used(self) -> int:
        """Number of rows that hold a page."""
        return self.payload.pages - len(self._free)

    @property
    def nbytes(self) -> int:
        """True bytes of the pages held, metadata included, spare rows not."""
        if self.used == 0:
            return 0
        return self.used * sum(tensor[0].nbytes for tensor in self.payload.tensors().values())

    def allocate(self, count: int) -> I4:
        """Take `count` rows, (count,); their content is whatever the last page left there."""
        if count > len(self._free):
            self._grow(max(self.used + count, 2 * self.payload.pages, 16))
        split = len(self._free) - count
        rows = np.array(self._free[split:], np.int32)
        del self._free[split:]
        return rows

    def release(self, rows: I4) -> None:
        """Give rows back; none may be free already."""
        self._free.extend(rows.tolist())

    def _grow(self, pages: int) -> None:
        old, new = self.payload, self._zeros(pages)
        for name, tensor in new.tensors().items():
            tensor[: old.pages] = old.tensors()[name]
        self._free = [*range(pages - 1, old.pages - 1, -1), *self._free]
        self.payload = new

    def _zeros(self, pages: int) -> PagePayload:
        made = PagePayload.zeros(self.codec, pages, *self._shape, self._dtype, self._device, self._v_dim)
        return made.apply(torch.Tensor.pin_memory) if self._pinned else made
