"""`attach`: a PiKV cache for `model.generate`, in place and undone on exit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.models.adapter import ForwardPass, paged_attention
from pikv_runtime.models.batch import BatchEngine
from pikv_runtime.models.gates import Gates
from pikv_runtime.models.geometry import decoder_layers, geometry_of
from pikv_runtime.models.hf_cache import LayerCache
from pikv_runtime.models.segments import ForwardResult
from pikv_runtime.models.step import Step
from pikv_runtime.policy.base import PolicyLike


@contextmanager
def attach(model: Any, config: RuntimeConfig | None = None, policy: PolicyLike | Control = None) -> Iterator[PikvCache]:
    """Let a Hugging Face MoE model decode from PiKV pages: `model.generate(ids, past_key_values=cache)`.

    Serves one batch at a time on one rank; prompts of unequal lengths are padded on the left and come with an
    `attention_mask`. With the default configuration it is exact. All rows go on together, so nothing can wait: where
    a cap is too small even for what the policy leaves, the forward pass fails; `pikv_runtime.generate` would queue.

    Args:
        model: Any causal MoE language model of transformers.
        config: How to store and read; None is `RuntimeConfig()`.
        policy: Who decides what is kept, as for `pikv_runtime.Engine`; a `Control` is obeyed throughout.

    Raises:
        ValueError: The model is not a supported MoE, or there is no such policy.
    """
    cache = PikvCache(model, config or RuntimeConfig(), policy)
    handles = [
        model.base_model.register_forward_pre_hook(cache.before_forward, with_kwargs=True),
        model.base_model.register_forward_hook(cache.after_forward, with_kwargs=True),
    ]
    try:
        with paged_attention(model):
            yield cache
    finally:
        cache.stop_listening()
        for handle in handles:
            handle.remove()


class PikvCache(LayerCache):
    """Pages of one batch; `nbytes()` and `engine` tell what is stored."""

    def __init__(self, model: Any, config: RuntimeConfig, policy: PolicyLike | Control) -> None:
        geometry = geometry_of(model, Gates(decoder_layers(model)).experts, config.page_tokens, config.latent)
        super().__init__(geometry.layers, latent=geometry.v_from_k > 0)
        self._latent = geometry.v_from_k > 0
        self._model, self._config = model, config
        groups = geometry.experts * min(geometry.layers, config.layer_groups)
        self._policy = _fixed(policy, groups) if isinstance(policy, Control) else policy
        self.engine = BatchEngine(model, config, self._policy)
        self.last_result: ForwardResult | None = None
        """Tags and codec errors of the pages that the last forward pass filled."""
        self._step: Step | None = None
        self._padding: NDArray[np.int64] | None = None
        self._listening = ExitStack()

    def nbytes(self) -> dict[str, int]:
        """True bytes of the stored pages by codec."""
        return self.engine.runner.nbytes()[0] if self.engine.rows else {}

    def reset(self) -> None:
        """Forget everything, the batch's size included."""
        super().reset()
        self.engine = BatchEngine(self._model, self._config, self._policy)
        self._padding = self._step = self.last_result = None

    def before_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Plan the forward pass and hand it to the attention function."""
        if kwargs.get("past_key_values") is not self:
            return None
        self.stop_listening()  # to a pass that ended in an error
        tokens = args[0] if args else kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs["inputs_embeds"][..., 0]
        batch, count = tokens.shape
        if self.engine.rows not in (0, batch):
            raise ValueError(f"batch of {batch} on a cache of {self.engine.rows} requests: reset() it first")
        counts, real = self._unpadded(kwargs.get("attention_mask"), batch, count)
        self._step = self.engine.begin(counts, real)
        self._listening.enter_context(self.engine.runner.gates.tapped())
        return args, {**kwargs, "pikv": ForwardPass(self._step, self if self._latent else None)}

    def after_forward(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Tell the ledger what the pass found out, and do what the policy decides."""
        forward = kwargs.get("pikv")
        if self._step is None or forward is None or forward.step is not self._step:
            return
        self.last_result = self.engine.end(self._step)
        self._step = None
        self.stop_listening()

    def stop_listening(self) -> None:
        """Take the hooks off the model's gates."""
        self._listening.close()

    def _unpadded(self, mask: Any, batch: int, count: int) -> tuple[NDArray[np.int64], Tensor | None]:
        """Tokens of every row that are not padding, (B,), and where they are among the batch's (None: all are)."""
        first = self.engine.rows == 0
        if isinstance(mask, Tensor) and mask.ndim == 2:
            holds = mask.cpu().numpy() != 0
            padding = (~holds).sum(1).astype(np.int64)
            if (np.diff(holds.astype(np.int8), axis=1) < 0).any() or not holds.any(1).all():
                raise ValueError("padding must be on the left of every row, before at least one token")
        else:
            padding = np.zeros(batch, np.int64) if self._padding is None else self._padding
        if first:
            if (padding >= count).any():
                raise ValueError(f"the first forward pass computes {count} tokens, all of them padding in some row")
            self._padding = padding
        elif self._padding is not None and (padding != self._padding).any():
            raise ValueError(f"padding changed from {self._padding.tolist()} to {padding.tolist()} tokens by row")
        if not first or not padding.any():
            return np.full(batch, count, np.int64), None
        real = (np.arange(count) >= padding[:, None]).ravel()
        return count - padding, torch.from_numpy(np.flatnonzero(real))


def _fixed(control: Control, groups: int) -> PolicyLike:
    """The policy that always asks for `control`."""
    if len(control.groups) != groups:
        raise ValueError(f"policy is a Control of {len(control.groups)} groups, this model and config have {groups}")

    def decide(_: Telemetry) -> Control:
        return control

    return decide
