"""Tiny models with random weights of every family that is served, and what their stock cache answers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

VOCABULARY, LAYERS, WINDOW, DECODED = 64, 4, 24, 64
LENGTHS = (37, 20, 51)
"""Prompt lengths of the requests of a case, by slot."""
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,  # OLMoE norms q over all heads: heads times head_dim
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": None,  # nothing ends by itself
    "initializer_range": 0.15,  # attention and gates far from uniform
}
_LATENT = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
_QWEN2 = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 4, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2Moe", _QWEN2),
    "qwen2-window": (
        "Qwen2Moe", {**_QWEN2, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3}
    ),
    "qwen3": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 32, "mlp_only_layers": [0]}),
    "olmoe": ("Olmoe", {"num_experts": 4}),
    "deepseek-v3": ("DeepseekV3", _LATENT),
    "gpt-oss": (
        "GptOss",
        {
            "num_local_experts": 4,
            "sliding_window": WINDOW,
            "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
        },
    ),
}  # fmt: skip
"""Name -> family of transformers, and what its config adds."""
LATENT, SINKS, SLIDING = {"deepseek-v3"}, {"gpt-oss"}, {"mixtral-window", "qwen2-window", "gpt-oss"}


def make(family: str, **options: Any) -> Any:
    """A causal language model of a family of transformers, with fixed random weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**_COMMON, **options})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for layer in getattr(model.base_model, "layers", []):
        if hasattr(layer.self_attn, "sinks"):
            torch.nn.init.normal_(layer.self_attn.sinks, mean=1.0)  # a share of the attention that shows
    return model


@functools.cache
def family_model(name: str) -> Any:
    """The tiny model of a name in `FAMILIES`."""
    family, options = FAMILIES[name]
    return make(family, **options)


def prompt_ids(slot: int, count: int) -> np.ndarray:
    """Random tokens of a request."""
    return np.random.default_rng(100 + slot).integers(1, VOCABULARY, count).astype(np.int32)


def routers(model: Any) -> dict[int, torch.nn.Module]:
    """The gate of every layer that has one."""
    return {
        i: module
        for i, layer in enumerate(model.base_model.layers)
        for module in layer.modules()
        if type(module).__name__.lower().endswith("topkrouter")
    }


@dataclass(frozen=True)
class Answers:
    """What the stock cache gave for one request: by position, and for gates by layer."""

    logits: torch.Tensor
    """(tokens, vocabulary)"""
    weights: dict[int, torch.Tensor]
    """(tokens, k) weights of the chosen experts."""
    chosen: dict[int, torch.Tensor]
    """(tokens, k) their ids."""
    gap: dict[int, torch.Tensor]
    """(tokens,) by how much the last chosen expert's probability beats the best that was not."""


@functools.cache
def stock_answers(name: str, slot: int) -> Answers:
    """Prefill and `DECODED` steps of one request with transformers' own cache."""
    model = family_model(name)
    ids = torch.from_numpy(prompt_ids(slot, LENGTHS[slot] + DECODED)).long()[None]
    found: dict[int, list[tuple[torch.Tensor, ...]]] = {i: [] for i in routers(model)}
    hooks = [
        router.register_forward_hook(lambda _, __, output, i=i: found[i].append(output))
        for i, router in routers(model).items()
    ]
    logits, cache = [], transformers.DynamicCache(config=model.config)
    first = 0
    with torch.no_grad():
        for until in range(LENGTHS[slot], LENGTHS[slot] + DECODED + 1):
            logits.append(model(ids[:, first:until], past_key_values=cache).logits[0])
            first = until
    for hook in hooks:
        hook.remove()
    gates = {i: [torch.cat(x) for x in zip(*outputs, strict=True)] for i, outputs in found.items()}
    return Answers(
        torch.cat(logits),
        {i: weights for i, (_, weights, _) in gates.items()},
        {i: chosen for i, (_, _, chosen) in gates.items()},
        {i: _gap(name, scores, chosen.shape[1]) for i, (scores, _, chosen) in gates.items()},
    )


def _gap(name: str, scores: torch.Tensor, k: int) -> torch.Tensor:
    share = torch.sigmoid(scores) if name in LATENT else torch.softmax(scores, -1)
    top = share.topk(k + 1, dim=-1).values
    return top[:, k - 1] - top[:, k]
