"""Exact keys of audited requests, kept beside the cache to measure what the cache lost."""

from __future__ import annotations

import torch
from torch import Tensor


class Shadows:
    """Keys of audited requests as the model made them, never encoded, by slot.

    Only keys: the exact attention mass, from which fidelity is computed, needs no values.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self._layers, self._shape, self._dtype = layers, (kv_heads, head_dim), dtype
        self._keys: dict[int, Tensor] = {}
        self.peak_bytes = 0

    def __contains__(self, slot: object) -> bool:
        return slot in self._keys

    @property
    def nbytes(self) -> int:
        """Bytes held; they count as audit bytes, not against a cap."""
        return sum(keys.nbytes for keys in self._keys.values())

    def write(self, slot: int, layer: int, start: int, k: Tensor) -> None:
        """Keep the keys (n, H_kv, D) of tokens from position `start` on; a new slot is opened."""
        self._reach(slot, start + len(k), k.device)
        self._keys[slot][layer, start : start + len(k)] = k

    def keys(self, slot: int, layer: int, tokens: int) -> Tensor:
        """Keys of the first `tokens` positions, (tokens, H_kv, D)."""
        return self._keys[slot][layer, :tokens]

    def drop(self, slot: int) -> None:
        """Forget a request that left."""
        self._keys.pop(slot, None)

    def _reach(self, slot: int, tokens: int, device: torch.device) -> None:
        old = self._keys.get(slot)
        have = 0 if old is None else old.shape[1]
        if tokens <= have:
            return
        grown = torch.zeros(self._layers, max(tokens, 2 * have, 64), *self._shape, dtype=self._dtype, device=device)
        if old is not None:
            grown[:, :have] = old
        self._keys[slot] = grown
        self.peak_bytes = max(self.peak_bytes, self.nbytes)
