"""Latent attention (MLA, DeepSeek-V2, arXiv 2405.04434, section 2.1) over pages that hold the latent.

A token leaves a latent c (kv_lora_rank channels, after its norm) and a rotary key r behind, shared by all heads. The
model's up-projection gives head h the key [U_h c, r] and the value W_h c. Its score on a query [q, p] is then
q · U_h c + p · r = (U_hᵀ q) · c + p · r: the query can be brought into the latent space instead ("absorbed"), and the
output is W_h applied to the average latent. A page thus is K of one head, [c, r], and V is the first part of K.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Latents(Protocol):
    """Where the latents of a forward pass are found."""

    def taken(self, layer: int) -> Tensor:
        """What `layer` would cache of the tokens that it computes, (B, 1, T, rank + rotary)."""
        ...


def absorbed(module: Any, query: Tensor) -> Tensor:
    """Queries (T, H, nope + rotary) brought into the latent space, (T, H, rank + rotary)."""
    nope, rotary = torch.split(query, [module.qk_nope_head_dim, module.qk_rope_head_dim], dim=-1)
    up_key = _up_projection(module)[:, : module.qk_nope_head_dim]
    return torch.cat((torch.einsum("thn,hnr->thr", nope, up_key), rotary), dim=-1)


def expanded(module: Any, out: Tensor) -> Tensor:
    """Average latents (T, H, rank) as the heads' outputs, (T, H, v_head_dim)."""
    return torch.einsum("thr,hvr->thv", out, _up_projection(module)[:, module.qk_nope_head_dim :])


def _up_projection(module: Any) -> Tensor:
    """Weights (H, nope + v, rank) that turn a latent into a head's key and value."""
    weight: Tensor = module.kv_b_proj.weight
    return weight.view(module.num_heads, -1, module.kv_lora_rank)
