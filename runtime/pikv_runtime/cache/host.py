"""The host side of one rank's store: pages that left the device, in the codec that they had there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_kernels import PagePayload
from pikv_runtime.cache.rows import PayloadRows
from pikv_runtime.ledger.state import CODECS

I8 = NDArray[np.int64]
ABSENT = -1


class HostPages:
    """Pages in host memory by id, pinned where the device is a GPU: real copies, bit-identical when they come back."""

    def __init__(
        self,
        page_shape: tuple[int, int, int],
        dtype: torch.dtype,
        ids: int,
        device: torch.device | str = "cpu",
        v_dim: int | None = None,
    ) -> None:
        self._device = torch.device(device)
        pinned, host = self._device.type == "cuda", torch.device("cpu")
        self._rows = [PayloadRows(codec, page_shape, dtype, host, pinned, v_dim) for codec in CODECS]
        self._codec = np.full(ids, ABSENT, np.int32)
        self._row = np.zeros(ids, np.int32)

    def nbytes(self) -> dict[str, int]:
        """True bytes of the pages held, by codec."""
        return {rows.codec: rows.nbytes for rows in self._rows}

    def put(self, ids: I8, codec: int, pages: PagePayload) -> None:
        """Copy pages (n,) of `CODECS[codec]` from the device.

        Raises:
            ValueError: a page is here already.
        """
        if (self._codec[ids] != ABSENT).any():
            raise ValueError(f"pages {ids[self._codec[ids] != ABSENT].tolist()} are already in host memory")
        rows = self._rows[codec].allocate(len(ids))
        for name, held in self._rows[codec].payload.tensors().items():
            _copy_rows(held, rows, pages.tensors()[name], np.arange(len(ids)))
        self._codec[ids], self._row[ids] = codec, rows

    def take(self, ids: I8) -> Iterator[tuple[I8, int, PagePayload]]:
        """Remove pages; yields, for each codec, which they are, the codec, and the pages on the device.

        Raises:
            ValueError: a page is not here.
        """
        if (self._codec[ids] == ABSENT).any():
            raise ValueError(f"pages {ids[self._codec[ids] == ABSENT].tolist()} are not in host memory")
        for codec in np.unique(self._codec[ids]).tolist():
            some = ids[self._codec[ids] == codec]
            held = self._rows[codec].payload
            rows = self._row[some]
            yield some, codec, held.apply(lambda tensor, rows=rows: self._fetch(tensor, rows))
            self._forget(some)

    def free(self, ids: I8) -> None:
        """Forget pages; all must be here."""
        if (self._codec[ids] == ABSENT).any():
            raise ValueError(f"pages {ids[self._codec[ids] == ABSENT].tolist()} are not in host memory")
        for codec in np.unique(self._codec[ids]).tolist():
            self._forget(ids[self._codec[ids] == codec])

    def _forget(self, ids: I8) -> None:
        """Pages of one codec are here no more."""
        self._rows[int(self._codec[ids[0]])].release(self._row[ids])
        self._codec[ids] = ABSENT

    def _fetch(self, held: Tensor, rows: NDArray[np.int32]) -> Tensor:
        pages = torch.empty((len(rows), *held.shape[1:]), dtype=held.dtype, device=self._device)
        _copy_rows(pages, np.arange(len(rows)), held, rows)
        return pages


def _copy_rows(target: Tensor, to: NDArray, source: Tensor, of: NDArray) -> None:
    """target[to] = source[of], one copy a row between devices: rows are contiguous, and pinned memory stays pinned."""
    if target.device == source.device:
        target[torch.from_numpy(np.asarray(to, np.int64))] = source[torch.from_numpy(np.asarray(of, np.int64))]
        return
    for row, origin in zip(to.tolist(), of.tolist(), strict=True):
        target[row].copy_(source[origin])
