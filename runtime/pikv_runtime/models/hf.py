"""`attach`: a PiKV cache for `model.generate`, in place and undone on exit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, GlobalControl
from pikv_runtime.ledger.state import CODECS, NATIVE, Event
from pikv_runtime.models.adapter import paged_attention
from pikv_runtime.models.runner import CacheView, ForwardResult, ModelRunner, Segment
from pikv_runtime.models.step import Step

ABSENT = -1


@contextmanager
def attach(model: Any, config: RuntimeConfig | None = None, policy: Any = None) -> Iterator[PikvCache]:
    """Let a Hugging Face MoE model decode from PiKV pages: `model.generate(ids, past_key_values=cache)`.

    Serves one batch of prompts of equal length, without padding, on one rank. With the default
    configuration it is exact. A cap and policies need the scheduling of `pikv_runtime.Engine`.

    Args:
        model: Any causal MoE language model of transformers with grouped-query attention.
        config: How to store and read; None is `RuntimeConfig()`.
        policy: A `Control` whose window and fan-out to obey throughout; None takes the window from
            `config` and reads everything.

    Raises:
        ValueError: The model is not a supported MoE, or the configuration needs an engine.
    """
    config = config or RuntimeConfig()
    if config.cap_bytes is not None:
        raise ValueError(f"cap_bytes={config.cap_bytes}: attach serves without a cap; use pikv_runtime.Engine")
    if policy is not None and not isinstance(policy, Control):
        raise ValueError(f"policy={policy!r}: attach obeys a fixed Control or None; use pikv_runtime.Engine")
    cache = PikvCache(ModelRunner(model, config), policy)
    handles = [
        model.base_model.register_forward_pre_hook(cache.before_forward, with_kwargs=True),
        model.base_model.register_forward_hook(cache.after_forward, with_kwargs=True),
    ]
    try:
        with paged_attention(model), cache.runner.gates.tapped():
            yield cache
    finally:
        for handle in handles:
            handle.remove()


class PikvLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer as transformers sees it: it counts tokens; K and V go to the store, through the attention."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self._tokens = 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the store allocates pages."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Count new tokens (B, H_kv, T, D) and pass them on to the attention function, which writes them."""
        self._tokens += key_states.shape[2]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) of the mask."""
        return self._tokens + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen: the next position, whatever was evicted."""
        return self._tokens

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1

    def reset(self) -> None:
        """Start over."""
        self._tokens = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: pages are not copied between requests."""
        raise ValueError("beam search is not supported: pages cannot be reordered between requests")


class PikvCache(Cache):  # type: ignore[misc]
    """Pages of one batch; `nbytes()` and `runner` tell what is stored."""

    def __init__(self, runner: ModelRunner, control: Control | None) -> None:
        super().__init__(layers=[PikvLayer() for _ in range(runner.geometry.layers)])
        self.runner = runner
        self.last_result: ForwardResult | None = None
        """Tags and codec errors of the pages that the last forward pass filled."""
        self._window, self._fan_out = runner.config.window_pages, 1.0
        if control is not None:
            self._window = int(control.globals[GlobalControl.WINDOW] + 0.5)
            self._fan_out = float(control.globals[GlobalControl.FAN_OUT])
        self._step: Step | None = None
        self._clear()

    def nbytes(self) -> dict[str, int]:
        """True bytes of the stored pages by codec."""
        return self.runner.stores[0].nbytes()

    def reset(self) -> None:
        """Forget everything."""
        blocks, layers = np.nonzero(self._codec != ABSENT)
        self.runner.apply_events(_events(Event.FREE, blocks, layers, self._codec[blocks, layers], 0))
        super().reset()
        self._clear()

    def before_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Plan the forward pass and hand it to the attention function."""
        if kwargs.get("past_key_values") is not self:
            return None
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.all()):
            raise ValueError("padding is not supported: pass prompts of equal length")
        tokens = args[0] if args else kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs["inputs_embeds"][..., 0]
        batch, count = tokens.shape
        start = self.get_seq_length()
        self._place(batch, start + count)
        ids = np.zeros(count, np.int32)  # the model has them already
        decode = count == 1 and start > 0
        self._step = self.runner.begin([Segment(i, 0, start, ids, decode) for i in range(batch)], self._view())
        return args, {**kwargs, "pikv": self._step}

    def after_forward(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Bind tags, then seal what left the window."""
        if kwargs.get("pikv") is not self._step or self._step is None:
            return
        batch = len(self._pages)
        self.last_result = self.runner.finish(self._step, torch.zeros(batch, dtype=torch.int32))
        for filled in self.last_result.filled:
            self._tags[self._pages[filled.slot, filled.page]] = filled.tags
        self._step = None
        self._seal()

    def _clear(self) -> None:
        config, layers = self.runner.config, self.runner.geometry.layers
        self._pages = np.full((0, 0), ABSENT, np.int32)
        self._codec = np.full((config.blocks, layers), ABSENT, np.int8)
        self._tags = np.full((config.blocks, layers), ABSENT, np.int8)
        self._used = 0

    def _place(self, batch: int, tokens: int) -> None:
        """Give every row of the batch block slots for `tokens` tokens."""
        have = self._pages.shape[1]
        if have and len(self._pages) != batch:
            raise ValueError(f"batch of {batch} on a cache of {len(self._pages)} requests: reset() it first")
        pages = -(-tokens // self.runner.config.page_tokens)
        need = batch * (pages - have)
        if self._used + need > self.runner.config.blocks:
            raise ValueError(f"{self._used + need} blocks needed, blocks={self.runner.config.blocks}: raise it")
        fresh = np.arange(self._used, self._used + need, dtype=np.int32).reshape(batch, pages - have)
        self._pages = np.concatenate([self._pages.reshape(batch, have), fresh], axis=1)
        self._codec[self._used : self._used + need] = NATIVE
        self._used += need

    def _view(self) -> CacheView:
        config = self.runner.config
        shape = (*self._pages.shape, self.runner.geometry.layers)
        return CacheView(
            page_block=self._pages,
            page_live=np.ones(shape, np.int8),
            page_ghost=np.zeros(shape, np.int8),
            block_codec=self._codec,
            block_rank=np.zeros_like(self._codec),
            block_tag=self._tags,
            window_pages=self._window,
            sink_pages=config.sink_pages,
            fan_out=self._fan_out,
            sparse=config.read == "sparse",
            router=config.router,
        )

    def _seal(self) -> None:
        """Move pages that left the always-on set to the top rung."""
        config = self.runner.config
        top = CODECS.index(config.codec)
        outside = self._pages[:, config.sink_pages : max(0, self._pages.shape[1] - 1 - self._window)]
        blocks, layers = np.nonzero(self._codec[outside.ravel()] < top)
        if len(blocks):
            sealed = outside.ravel()[blocks]
            self.runner.apply_events(_events(Event.ENCODE, sealed, layers, self._codec[sealed, layers], top))
            self._codec[sealed, layers] = top


def _events(kind: Event, blocks: NDArray, layers: NDArray, before: NDArray, after: int) -> NDArray[np.int32]:
    columns = (np.full(len(blocks), kind), blocks, layers, before, np.full(len(blocks), after))
    return np.stack(columns, axis=1).astype(np.int32)
