"""What the runtime must know of a Hugging Face model's attention: widths, windows, what a token leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

MOST_EXPERTS = 128
"""The ledger's tags are 8-bit."""


@dataclass(frozen=True)
class Geometry:
    """Shape of a model's KV as it is stored, and where it lives."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    """Channels of a query and of a stored K head."""
    v_dim: int
    """Channels of a V head, and of a query head's output."""
    experts: int
    page_tokens: int
    scale: float
    dtype: torch.dtype
    device: torch.device
    v_from_k: int = 0
    """Latent attention: V is not stored, it is K's first `v_from_k` channels."""
    windows: tuple[int, ...] = ()
    """Per layer, how many tokens a query sees, itself included; 0: all. Empty: all in every layer."""


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a causal language model.

    Raises:
        ValueError: The model has none where Hugging Face models keep them.
    """
    layers = getattr(getattr(model, "base_model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(model).__name__}: no decoder layers at model.base_model.layers")
    return layers


def is_latent(model: Any) -> bool:
    """Whether the model's attention caches a compressed latent (MLA, DeepSeek-V2, arXiv 2405.04434)."""
    return hasattr(getattr(decoder_layers(model)[0], "self_attn", None), "kv_b_proj")


def geometry_of(model: Any, experts: int, page_tokens: int, latent: bool = True) -> Geometry:
    """Read the geometry off a model.

    Args:
        model: A causal language model of transformers.
        experts: Experts of a layer, as `Gates` found them.
        page_tokens: Token slots of a page.
        latent: Latent attention only: store the latent and the rotary key, not K and V of every head.

    Raises:
        ValueError: Its attention is of a kind that pages cannot serve.
    """
    layers, config = decoder_layers(model), model.config
    if experts > MOST_EXPERTS:
        raise ValueError(f"{type(model).__name__}: {experts} experts: allowed are at most {MOST_EXPERTS}")
    attention: Any = getattr(layers[0], "self_attn", None)
    weight = next(model.parameters())
    common: dict[str, Any] = {
        "layers": len(layers),
        "heads": int(config.num_attention_heads),
        "experts": experts,
        "page_tokens": page_tokens,
        "dtype": weight.dtype,
        "device": weight.device,
        "windows": _windows(model),
    }
    if is_latent(model):
        return Geometry(**common, **_latent_widths(model, attention, latent))
    if not hasattr(attention, "k_proj") or not hasattr(attention, "v_proj"):
        raise ValueError(
            f"{type(model).__name__}: attention must have separate K and V projections (k_proj, v_proj) "
            "or a latent (kv_b_proj)"
        )
    head_dim = int(attention.head_dim)
    return Geometry(
        **common,
        kv_heads=int(config.num_key_value_heads),
        head_dim=head_dim,
        v_dim=head_dim,
        scale=float(getattr(attention, "scaling", head_dim**-0.5)),
    )


def _latent_widths(model: Any, attention: Any, latent: bool) -> dict[str, Any]:
    """Widths of latent attention: one head of (latent, rotary key), or K and V of every head after up-projection."""
    if not hasattr(attention, "expand_kv") or attention.kv_b_proj.bias is not None:
        raise ValueError(f"{type(model).__name__}: latent attention is served as in DeepSeek-V3 (expand_kv, no bias)")
    rank, rotary = int(attention.kv_lora_rank), int(attention.qk_rope_head_dim)
    scale = float(attention.scaling)
    if latent:
        return {"kv_heads": 1, "head_dim": rank + rotary, "v_dim": rank, "v_from_k": rank, "scale": scale}
    heads, head_dim = int(attention.num_heads), int(attention.qk_nope_head_dim) + rotary
    return {"kv_heads": heads, "head_dim": head_dim, "v_dim": int(attention.v_head_dim), "scale": scale}


def _windows(model: Any) -> tuple[int, ...]:
    """Sliding window of every layer; families with layer types leave the size set where no layer slides."""
    config, count = model.config, len(decoder_layers(model))
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * count
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(f"{type(model).__name__}: {', '.join(sorted(unknown))} layers are not supported")
    size = int(getattr(config, "sliding_window", None) or 0)
    windows = tuple(size if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()
