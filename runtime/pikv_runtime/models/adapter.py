"""What the runtime needs to know of, and change in, a Hugging Face MoE model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NAME = "pikv"  # in AttentionInterface and AttentionMaskInterface


@dataclass(frozen=True)
class Geometry:
    """Shape of a model's KV, and where it lives."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    page_tokens: int
    scale: float
    dtype: torch.dtype
    device: torch.device


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a causal language model.

    Raises:
        ValueError: The model has none where Hugging Face models keep them.
    """
    layers = getattr(getattr(model, "base_model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(model).__name__}: no decoder layers at model.base_model.layers")
    return layers


def geometry_of(model: Any, experts: int, page_tokens: int) -> Geometry:
    """Read the geometry off a model.

    Raises:
        ValueError: Its attention is sliding, or not grouped-query attention over K and V of one width.
    """
    layers, config = decoder_layers(model), model.config
    attention: Any = layers[0].self_attn
    weight = next(model.parameters())
    if not hasattr(attention, "k_proj") or not hasattr(attention, "v_proj"):
        raise ValueError(f"{type(model).__name__}: only models with separate K and V projections are supported")
    if _is_sliding(config):
        raise ValueError(f"{type(model).__name__}: sliding-window attention is not supported")
    if hasattr(attention, "sinks"):
        raise ValueError(f"{type(model).__name__}: learned attention sinks are not supported")
    head_dim = int(attention.head_dim)
    return Geometry(
        layers=len(layers),
        heads=int(config.num_attention_heads),
        kv_heads=int(config.num_key_value_heads),
        head_dim=head_dim,
        experts=experts,
        page_tokens=page_tokens,
        scale=float(getattr(attention, "scaling", head_dim**-0.5)),
        dtype=weight.dtype,
        device=weight.device,
    )


def _is_sliding(config: Any) -> bool:
    """Whether any layer attends to a window only; families with layer types leave the size set."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return any(kind != "full_attention" for kind in kinds)
    return bool(getattr(config, "sliding_window", None))


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
    """Attention of (B, H, T, D) tensors through the step in `pikv`; the plan stands in for the mask."""
    step = kwargs.get("pikv")
    if step is None:
        raise ValueError("this model is attached to a PiKV cache: call it with past_key_values=cache")
    batch, heads, tokens, head_dim = query.shape
    packed = [x.transpose(1, 2).reshape(batch * tokens, -1, head_dim) for x in (query, key, value)]
    out = step.attend(module.layer_idx, *packed)
    return out.view(batch, tokens, heads, head_dim), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """No mask is built: the plan says who sees what."""
