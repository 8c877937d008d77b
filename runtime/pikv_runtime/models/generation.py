"""`generate`: prompts in, completions out, in one call through the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.engine import Engine
from pikv_runtime.models.loading import load_model
from pikv_runtime.policy.base import PolicyLike
from pikv_runtime.prompts import prompt_request
from pikv_runtime.requests import RequestList

I4 = NDArray[np.int32]
Prompt = str | Sequence[int] | I4


@dataclass(frozen=True)
class Completion:
    """What followed a prompt."""

    ids: I4 = field(repr=False)
    """Generated tokens, up to and including the first that ends a text."""
    text: str | None
    """The same decoded, special tokens left out; None without a tokenizer."""


def generate(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    policy: PolicyLike = None,
    max_new_tokens: int = 32,
    config: RuntimeConfig | None = None,
    tokenizer: Any = None,
    ranks: int = 1,
) -> list[Completion]:
    """Complete prompts of any lengths, greedily, with continuous batching and shared prefixes.

    A text that ends early is cut there; the engine computes `max_new_tokens` all the same.

    Args:
        model: A Hugging Face MoE model, `"embedded"`, or a folder.
        prompts: Texts, or token ids (the only kind without a tokenizer).
        policy: Who decides what is kept, as for `pikv_runtime.Engine`.
        max_new_tokens: Tokens to generate for each prompt.
        config: How to store, read and serve; None is `RuntimeConfig()`.
        tokenizer: Of a model that is not given by name.
        ranks: Virtual ranks.

    Returns:
        One completion for each prompt, in order.

    Raises:
        ValueError: A prompt is empty, not to be encoded, or can never fit under the cap.
    """
    if isinstance(model, str):
        model, own = load_model(model)
        tokenizer = own if tokenizer is None else tokenizer
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts={prompts!r}: wanted a list of texts or of token ids, at least one")
    config = config or RuntimeConfig()
    ids = [_encoded(number, prompt, tokenizer) for number, prompt in enumerate(prompts)]
    requests = tuple(prompt_request(number, x, max_new_tokens, config.page_tokens) for number, x in enumerate(ids))
    engine = Engine(model, config, policy, ranks)
    served = {done.request.request_id: done.output_ids for done in engine.run(RequestList("generate", 0.0, requests))}
    refused = [f"{r.request_id} ({r.prompt_tokens} tokens)" for r in engine.refused()]
    if refused:
        raise ValueError(f"cap_bytes={config.cap_bytes}: too small for prompts {', '.join(refused)}")
    ends = _ends(model)
    return [_completion(served[number], ends, tokenizer) for number in range(len(ids))]


def _encoded(number: int, prompt: Prompt, tokenizer: Any) -> I4:
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(f"prompt {number} is text, and there is no tokenizer: pass one, or token ids")
        prompt = tokenizer.encode(prompt)
    ids = np.asarray(prompt, np.int32)
    if ids.ndim != 1 or len(ids) == 0:
        raise ValueError(f"prompt {number} has shape {ids.shape}: wanted at least one token, in one dimension")
    return ids


def _ends(model: Any) -> list[int]:
    """Tokens that end a text."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if end is None else list(end) if isinstance(end, Sequence) else [int(end)]


def _completion(ids: I4, ends: list[int], tokenizer: Any) -> Completion:
    last = np.flatnonzero(np.isin(ids, ends))
    ids = ids[: last[0] + 1] if len(last) else ids
    return Completion(ids, None if tokenizer is None else tokenizer.decode(ids.tolist(), skip_special_tokens=True))
