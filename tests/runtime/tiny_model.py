"""The embedded model's architecture with fixed random weights, and its stock answers."""

from __future__ import annotations

import functools

import numpy as np
import torch

from pikv_runtime.models.training.architecture import embedded_config


@functools.cache
def tiny_model():
    from transformers import MixtralForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = embedded_config()
    config.initializer_range = 0.1  # attention and gates far from uniform
    return MixtralForCausalLM(config).float().eval()


def random_ids(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count).astype(np.int32)


def stock(ids: np.ndarray, mask: torch.Tensor | None = None, attentions: bool = False):
    """Forward pass of the unchanged model: logits, router logits and perhaps attentions."""
    model = tiny_model()
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(
                torch.from_numpy(ids)[None].long(),
                attention_mask=mask,
                use_cache=False,
                output_router_logits=mask is None,
                output_attentions=attentions,
            )
    finally:
        model.set_attn_implementation(before)
