"""What stands where transformers expects its cache: it counts tokens, and sees the latents of those being computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class PikvLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer as transformers sees it; K and V go to the store, through the attention."""

    is_sliding = False

    def __init__(self, latent: bool) -> None:
        super().__init__()
        self.is_initialized = True
        self._latent, self._tokens = latent, 0
        self._given: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the store allocates pages."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Count new tokens (B, H, T, D) and pass them on; latents (B, 1, T, rank and rotary) are kept for `taken`."""
        self._tokens += key_states.shape[2]
        if self._latent:
            self._given = torch.cat((key_states, value_states), dim=-1)
        return key_states, value_states

    def taken(self) -> Tensor:
        """The latents of this forward pass, once, (B, 1, T, rank + rotary)."""
        given, self._given = self._given, None
        assert given is not None  # asked by latent attention only, after its update
        return given

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) of the mask."""
        return self._tokens + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen, padding included: the next position, whatever was evicted."""
        return self._tokens

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1

    def reset(self) -> None:
        """Start over."""
        self._tokens, self._given = 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: pages are not copied between requests."""
        raise ValueError("beam search is not supported: pages cannot be reordered between requests")


class LayerCache(Cache):  # type: ignore[misc]
    """A cache that keeps nothing: it only sees what the model would store."""

    def __init__(self, layers: int, latent: bool) -> None:
        super().__init__(layers=[PikvLayer(latent) for _ in range(layers)])

    def taken(self, layer: int) -> Tensor:
        """See `pikv_runtime.models.latent.Latents`."""
        latents: Tensor = self.layers[layer].taken()
        return latents
