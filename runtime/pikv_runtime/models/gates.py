"""Taps on a model's gates: the experts that tokens chose, and a prediction of it before attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Gates:
    """Hooks on every layer and on every `*TopKRouter` module, while tapped.

    Layers without a gate of their own borrow the nearest later one's (else the nearest earlier one's), so
    that every page has a tag.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self._layers: list[Any] = list(layers)
        own = [_router(layer) for layer in layers]
        if not any(own):
            raise ValueError("not a Mixture-of-Experts model: no layer has a module named *TopKRouter")
        found = [i for i, router in enumerate(own) if router is not None]
        self._source = [min(found, key=lambda i: (i < layer, abs(i - layer))) for layer in range(len(own))]
        self._routers: dict[int, Any] = {i: own[i] for i in found}
        self.experts = max(int(router.weight.shape[0]) for router in self._routers.values())
        self._before: dict[int, Tensor] = {}
        self._chosen: dict[int, Tensor] = {}

    @contextmanager
    def tapped(self) -> Iterator[None]:
        """Listen to the model's forward passes until exit."""
        handles = [
            layer.register_forward_pre_hook(self._keep_state(i), with_kwargs=True)
            for i, layer in enumerate(self._layers)
        ]
        handles += [router.register_forward_hook(self._keep_choice(i)) for i, router in self._routers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._before.clear()

    def choices(self) -> Tensor:
        """Top expert of each token that the last forward pass computed, padding included, (L, T)."""
        return torch.stack([self._chosen[source] for source in self._source])

    def predicted(self, layer: int, tokens: slice) -> Tensor:
        """Gate distribution (n, E) of packed tokens, from the layer's input, before its attention runs.

        The state is normalised as the gate's own input is (by the norm after attention): what attention
        adds to the residual stream is all that the prediction misses.
        """
        source = self._source[layer]
        router, block = self._routers[source], self._layers[source]
        state: Any = self._before[layer].flatten(0, 1)[tokens]
        if hasattr(block, "post_attention_layernorm"):
            state = block.post_attention_layernorm(state)
        logits: Tensor = router.forward(state)[0].float()  # not router(): that would run the hook
        if hasattr(router, "e_score_correction_bias"):  # sigmoid gates, DeepSeek style
            share = torch.sigmoid(logits)
            return share / share.sum(1, keepdim=True)
        return torch.softmax(logits, 1)

    def _keep_state(self, layer: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._before[layer] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _keep_choice(self, layer: int) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
            weights, experts = output[1:]
            self._chosen[layer] = experts.gather(1, weights.argmax(1, keepdim=True)).squeeze(1)

        return hook


def _router(layer: nn.Module) -> Any:
    """The gate module of a decoder layer, or None in a dense one."""
    for module in layer.modules():
        if type(module).__name__.lower().endswith("topkrouter"):
            return module
    return None
