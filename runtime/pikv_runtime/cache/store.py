"""The tensors of one rank's pages, in agreement with the ledger.

A *block slot* names one position range over all layers; page (layer, block) is one row of the payload of its
codec. All layers share the payloads, so that a page freed in one layer makes room in another.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import pikv_kernels
from pikv_kernels import PagePayload, PagePool, codec_error, decode, page_bytes, recode_pages, store_tokens
from pikv_runtime.cache.host import HostPages
from pikv_runtime.cache.rows import PayloadRows
from pikv_runtime.ledger.state import CODECS

I8 = NDArray[np.int64]
I4 = NDArray[np.int32]
NATIVE, ABSENT = 0, -1
_POOL_CODECS = np.array([*(pikv_kernels.CODECS.index(codec) for codec in CODECS), ABSENT], np.int32)
"""Number of each rung of the ledger's ladder among all codecs of the kernels; the last is what is not here."""


class PagedStore:
    """K and V of the pages that one rank holds, by (layer, block slot): on the device, and in `host` what left it.

    Methods that take `layers` and `blocks` take integers or integer arrays that broadcast to (n,) pages.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        page_tokens: int,
        dtype: torch.dtype,
        blocks: int,
        device: torch.device | str = "cpu",
        v_dim: int | None = None,
        v_from_k: int = 0,
    ) -> None:
        """Allocate nothing yet.

        Args:
            layers: Layers of the model.
            kv_heads: Heads of K and V.
            head_dim: Channels of a K head.
            page_tokens: Token slots of a page.
            dtype: The model's.
            blocks: Block slots.
            device: Where pages live.
            v_dim: Channels of a V head where it differs from K's.
            v_from_k: V is not stored: it is K's first `v_from_k` channels (latent attention).
        """
        self.layers, self.blocks = layers, blocks
        self.page_shape = (kv_heads, page_tokens, head_dim)
        self._v_from_k = v_from_k
        self._stored_v = 0 if v_from_k else head_dim if v_dim is None else v_dim
        self.dtype, self.device = dtype, torch.device(device)
        self._rows = [PayloadRows(codec, self.page_shape, dtype, self.device, v_dim=self._stored_v) for codec in CODECS]
        self._codec = np.full(layers * blocks, ABSENT, np.int32)  # by page id = layer * blocks + block
        self._row = np.zeros(layers * blocks, np.int32)
        self._pool: PagePool | None = None
        self.host = HostPages(self.page_shape, dtype, layers * blocks, self.device, self._stored_v)

    # --- what is here

    @property
    def v_dim(self) -> int:
        """Channels of V as attention reads it."""
        return self._v_from_k or self._stored_v

    def page_ids(self, layers: ArrayLike, blocks: ArrayLike) -> I8:
        """Ids of pages in the pool's page tables, (n,)."""
        ids = np.asarray(layers, np.int64) * self.blocks + np.asarray(blocks, np.int64)
        return np.atleast_1d(ids)

    def codec(self, layer: int, block: int) -> int:
        """Ladder index of a page's codec, -1 where it is not here."""
        return int(self._codec[layer * self.blocks + block])

    def nbytes(self) -> dict[str, int]:
        """True bytes of resident pages by codec."""
        return {rows.codec: rows.nbytes for rows in self._rows}

    def pool(self) -> PagePool | None:
        """What paged attention reads, addressed by `page_ids`; None while no page is here."""
        if self._pool is None:
            payloads = {rows.codec: rows.payload for rows in self._rows if rows.used}
            if payloads:
                to_device = partial(torch.tensor, device=self.device)
                self._pool = PagePool(
                    payloads, to_device(_POOL_CODECS[self._codec]), to_device(self._row), self._v_from_k
                )
        return self._pool

    # --- change

    def open(self, layers: ArrayLike, blocks: ArrayLike) -> None:
        """Make room for pages about to be written, in native form.

        Raises:
            ValueError: A page is already here: its block slot was reused without being freed.
        """
        ids = self.page_ids(layers, blocks)
        if (self._codec[ids] != ABSENT).any():
            raise ValueError(f"pages {ids[self._codec[ids] != ABSENT].tolist()} are already stored")
        self._place(ids, NATIVE)

    def write(self, layer: int, blocks: I4, offsets: I4, k: Tensor, v: Tensor) -> None:
        """Store new tokens; pages not here yet are opened.

        Args:
            layer: Layer index.
            blocks: (T,) block slot of each token; each page absent or native.
            offsets: (T,) token slot within the page.
            k: (T, H_kv, D) float.
            v: (T, H_kv, D_v) float; not looked at where V is part of K.
        """
        ids = self.page_ids(layer, blocks)
        codecs = self._codec[ids]
        if codecs.any():
            if (codecs > NATIVE).any():
                raise ValueError(f"layer {layer}: tokens written into a sealed page")
            self._place(np.unique(ids[codecs == ABSENT]), NATIVE)
        rows, slots = self._index(self._row[ids]), self._index(offsets)
        store_tokens(self._rows[NATIVE].payload, rows, slots, k, v[..., :0] if self._v_from_k else v)

    def encode(self, layers: ArrayLike, blocks: ArrayLike, codec: int) -> None:
        """Move pages down the ladder, to `CODECS[codec]`; all must be here."""
        ids = self._resident(layers, blocks)
        for before in np.unique(self._codec[ids]).tolist():
            some = ids[self._codec[ids] == before]
            if before == codec:
                continue
            rows = self._rows[codec].allocate(len(some))
            higher, lower = self._rows[before].payload, self._rows[codec].payload
            recode_pages(higher, self._index(self._row[some]), lower, self._index(rows))
            self._remove(some)
            self._codec[some], self._row[some] = codec, rows

    def free(self, layers: ArrayLike, blocks: ArrayLike) -> None:
        """Forget pages; all must be here."""
        self._remove(self._resident(layers, blocks))

    def swap_out(self, layers: ArrayLike, blocks: ArrayLike) -> None:
        """Move pages to host memory as they are; all must be on the device."""
        ids = self._resident(layers, blocks)
        for codec in np.unique(self._codec[ids]).tolist():
            some = ids[self._codec[ids] == codec]
            self.host.put(some, codec, self._rows[codec].payload.select(self._index(self._row[some])))
        self._remove(ids)

    def swap_in(self, layers: ArrayLike, blocks: ArrayLike) -> None:
        """Bring pages back from host memory, bit-identical; all must be there."""
        for ids, codec, pages in self.host.take(self.page_ids(layers, blocks)):
            self._place(ids, codec, pages)

    def free_host(self, layers: ArrayLike, blocks: ArrayLike) -> None:
        """Forget pages in host memory; all must be there."""
        self.host.free(self.page_ids(layers, blocks))

    # --- read

    def gather(self, layers: ArrayLike, blocks: ArrayLike) -> tuple[Tensor, Tensor]:
        """Dequantised K and V of pages, (n, H_kv, page_tokens, D) and (…, D_v) in the model's dtype."""
        k, v = self._decode(self._resident(layers, blocks))
        return k, k[..., : self._v_from_k] if self._v_from_k else v

    def measure(self, layers: ArrayLike, blocks: ArrayLike) -> tuple[Tensor, Tensor]:
        """Mean keys (n, H_kv, D) and every codec's relative error (n, K), fp32, of full native pages."""
        k, v = self._decode(self._resident(layers, blocks))
        errors = [codec_error(k, v, codec) for codec in CODECS[1:]]
        return k.float().mean(2), torch.stack([torch.zeros_like(errors[0]), *errors], dim=1)

    def take(self, layers: ArrayLike, blocks: ArrayLike) -> Tensor:
        """Remove pages of one codec and return their bytes, (n, page_bytes) uint8."""
        flat = self.read(layers, blocks)
        self._remove(self.page_ids(layers, blocks))
        return flat

    def read(self, layers: ArrayLike, blocks: ArrayLike) -> Tensor:
        """The bytes of pages of one codec, (n, page_bytes) uint8."""
        ids = self._resident(layers, blocks)
        codec = int(self._codec[ids[0]])
        if (self._codec[ids] != codec).any():
            raise ValueError("pages taken together must share one codec")
        return self._rows[codec].payload.select(self._index(self._row[ids])).to_bytes()

    def put(self, layers: ArrayLike, blocks: ArrayLike, codec: int, flat: Tensor) -> None:
        """Store pages that another rank took; `flat` is (n, page_bytes) uint8."""
        ids = self.page_ids(layers, blocks)
        flat = flat.to(self.device)
        pages = PagePayload.from_bytes(flat, CODECS[codec], *self.page_shape, self.dtype, self._stored_v)
        self._place(ids, codec, pages)

    def page_bytes(self, codec: int) -> int:
        """Bytes of one page in `CODECS[codec]`."""
        return page_bytes(CODECS[codec], *self.page_shape, self.dtype, self._stored_v)

    # --- internals

    def _decode(self, ids: I8) -> tuple[Tensor, Tensor]:
        """K and V of pages as they are stored."""
        codecs = self._codec[ids]
        used = np.unique(codecs).tolist()
        if len(used) == 1:
            return decode(self._rows[used[0]].payload.select(self._index(self._row[ids])), self.dtype)
        k = torch.empty(len(ids), *self.page_shape, dtype=self.dtype, device=self.device)
        v = k.new_empty(*k.shape[:3], self._stored_v)
        for codec in used:
            chosen = np.flatnonzero(codecs == codec)
            pages = self._rows[codec].payload.select(self._index(self._row[ids[chosen]]))
            k[self._index(chosen)], v[self._index(chosen)] = decode(pages, self.dtype)
        return k, v

    def _resident(self, layers: ArrayLike, blocks: ArrayLike) -> I8:
        ids = self.page_ids(layers, blocks)
        if (self._codec[ids] == ABSENT).any():
            gone = ids[self._codec[ids] == ABSENT]
            pairs = [divmod(int(i), self.blocks) for i in gone[:4]]
            raise ValueError(f"{len(gone)} pages are not on this rank, first (layer, block): {pairs}")
        return ids

    def _place(self, ids: I8, codec: int, pages: PagePayload | None = None) -> None:
        rows = self._rows[codec].allocate(len(ids))
        if pages is not None:
            self._rows[codec].payload.put(self._index(rows), pages)
        self._codec[ids], self._row[ids] = codec, rows
        self._pool = None

    def _remove(self, ids: I8) -> None:
        codecs = self._codec[ids]
        for codec in np.unique(codecs).tolist():
            self._rows[codec].release(self._row[ids[codecs == codec]])
        self._codec[ids] = ABSENT
        self._pool = None

    def _index(self, values: NDArray) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.int64), device=self.device)
