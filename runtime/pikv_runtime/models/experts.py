"""Expert weights spread over ranks by transformers' own expert parallelism: whole experts on each rank, tokens
exchanged all-to-all around them.

Attention, embeddings and gates stay whole on every rank. What tokens weigh on the wire is transformers' business and
not in the transport's counters.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from pikv_runtime.models.geometry import decoder_layers

DISPATCH, SHARD = "ep_dispatch_experts", "grouped_gemm"  # names of transformers' styles


def spread_experts(model: Any, device: torch.device | str = "cpu") -> None:
    """Keep only this rank's share of every layer's experts, in place; collective over torch.distributed's processes.

    Raises:
        ValueError: one process, an installed transformers without dispatched experts, a model without a plan for them,
            or experts that do not divide evenly.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise ValueError("expert parallelism needs several processes: start them with torchrun")
    try:
        from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES as STYLES

        dispatch, shard = STYLES[DISPATCH], STYLES[SHARD]
    except (ImportError, KeyError, ValueError) as error:
        raise ValueError(f"the installed transformers cannot dispatch experts ({error}); 5.23 can") from None
    world = dist.get_world_size()
    # Every rank has a batch of its own: the groups that share one, transformers' "tp", are of one rank each.
    mesh = DeviceMesh(torch.device(device).type, torch.arange(world).view(world, 1), mesh_dim_names=("ep", "tp"))
    plan = getattr(model.config, "base_model_ep_plan", None) or {}
    found = [(name, m) for name, m in model.base_model.named_modules() if plan.get(_pattern(name)) == DISPATCH]
    if not found:
        raise ValueError(f"{type(model).__name__}: transformers has no plan to dispatch its experts")
    with torch.no_grad():
        for name, module in found:
            for parameter in list(module._parameters):
                if plan.get(f"{_pattern(name)}.{parameter}") == SHARD:
                    shard.shard_param(module, parameter, mesh["ep"])
            dispatch.install_forward(module, mesh["ep"], tp_mesh=mesh["tp"], ep_implementation="all_to_all")


def join_exchange(model: Any, layer: int) -> None:
    """Take part in a layer's exchange of tokens without having any: where experts are spread, ranks without requests
    must, since theirs serve others."""
    experts = spread_in(decoder_layers(model)[layer])
    if experts is None:
        return
    weight = next(model.parameters())
    width = int(model.config.hidden_size)
    nothing = torch.zeros(0, width, dtype=weight.dtype, device=weight.device)
    experts(nothing, torch.zeros(0, 1, dtype=torch.int64, device=weight.device), nothing[:, :1])


def spread_in(layer: nn.Module) -> Any:
    """The layer's experts if they are spread over ranks, else None."""
    return next((m for m in layer.modules() if getattr(m, "_is_expert_parallel", False)), None)


def _pattern(name: str) -> str:
    """A module's name as plans write it: `layers.3.mlp.experts` is `layers.*.mlp.experts`."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
