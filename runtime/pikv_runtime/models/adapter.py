"""How a Hugging Face model's attention asks the paged cache: one function registered under one name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pikv_runtime.models.latent import Latents, absorbed, expanded
from pikv_runtime.models.step import Step

NAME = "pikv"  # in AttentionInterface and AttentionMaskInterface


class ForwardPass:
    """One forward pass as the model's attention modules see it; given to the model as the keyword `pikv`.

    It takes the model's (B, H, T, D) tensors apart into the step's packed tokens, and puts the output together again.
    """

    def __init__(self, step: Step, latents: Latents | None = None) -> None:
        """`latents`: what stands in the place of the model's cache, where pages hold latents."""
        self.step, self._latents = step, latents

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        """Attention of one layer, (B, T, H, D_v): positions that are padding come out as zeros."""
        batch, _, tokens, _ = query.shape
        if self._latents is None:
            q, k, v = (self._packed(x) for x in (query, key, value))
            out = self.step.attend(module.layer_idx, q, k, v, sinks)
        else:
            k = self._packed(self._latents.taken(module.layer_idx))
            q = absorbed(module, self._packed(query))
            out = expanded(module, self.step.attend(module.layer_idx, q, k, k, sinks))
        real = self.step.real
        if real is not None:
            whole = out.new_zeros(batch * tokens, *out.shape[1:])
            whole[real] = out
            out = whole
        return out.view(batch, tokens, *out.shape[1:])

    def _packed(self, x: Tensor) -> Tensor:
        """(B, H, T, D) as (tokens, H, D), without padding."""
        flat = x.transpose(1, 2).flatten(0, 1)
        return flat if self.step.real is None else flat[self.step.real]


@contextmanager
def paged_attention(model: Any) -> Iterator[None]:
    """Make a model's attention ask the `pikv` keyword argument of its forward pass; undone on exit."""
    _register()
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of (B, H, T, D) tensors through the pass in `pikv`; its plan stands in for mask and window."""
    forward: ForwardPass | None = kwargs.get("pikv")
    if forward is None:
        raise ValueError("this model is attached to a PiKV cache: call it with past_key_values=cache")
    return forward.attend(module, query, key, value, kwargs.get("s_aux")), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """No mask is built: the plan says who sees what."""
