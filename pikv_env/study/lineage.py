"""What a lossy lineage costs: pages written while the context was read with loss, and reused by a later prompt.

A first turn's answer is written over a context that is quantised, or partly gone; a second turn then reads that
answer's pages. Its context is exact but for them, so that whatever differs from the exact run is the lineage's fault.
Beside it stands what the same pages cost if they were computed exactly and then stored in a codec: an error that every
engine with a quantised cache accepts, and that F counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from pikv_env.study.contents import Probe
from pikv_kernels import decode, encode

PAGE_TOKENS, SINK_PAGES, WINDOW_PAGES = 16, 1, 2
SHARED = 64
"""Tokens of the first turn's answer: four whole blocks."""

KV = list[tuple[Tensor, Tensor]]
"""K and V of every layer, (1, H_kv, T, D)."""
Read = Callable[[KV, int], tuple[KV, Tensor | None]]
"""From a prompt's K and V and its length to what the answer reads: K and V, and (T,) which tokens it does not see."""


def study_lineage(model: Any, probes: Sequence[Probe]) -> Iterator[dict[str, Any]]:
    """One row for every way in which the first turn may read, or store, with loss."""
    turns = [_exact(model, probe) for probe in probes]
    for name, read in LINEAGES.items():
        yield _row(model, turns, name, "lineage", partial(_rewritten, model, read))
    for codec in ("int8", "int4"):
        yield _row(model, turns, f"exact, stored in {codec}", "codec", partial(_stored, codec))


class Turn:
    """The exact run of one text: prompt, first answer of `SHARED` tokens, second turn."""

    def __init__(self, ids: Tensor, prompt: int, kv: KV, log_probs: Tensor) -> None:
        self.ids, self.prompt, self.kv, self.log_probs = ids, prompt, kv, log_probs

    @property
    def end(self) -> int:
        """First token of the second turn."""
        return self.prompt + SHARED


@torch.no_grad()
def _exact(model: Any, probe: Probe) -> Turn:
    request = probe.request
    assert request.prompt_ids is not None and request.exact_ids is not None
    ids = torch.from_numpy(np.concatenate([request.prompt_ids, request.exact_ids]).astype(np.int64))[None]
    # Whole blocks: a block that begins in the prompt would be half exact.
    prompt = len(request.prompt_ids) // PAGE_TOKENS * PAGE_TOKENS
    cache = DynamicCache()
    logits = model(ids, past_key_values=cache).logits[0]
    kv = [(layer.keys, layer.values) for layer in cache.layers]
    return Turn(ids, prompt, kv, torch.log_softmax(logits[prompt + SHARED :].double(), -1))


def _far(prompt: int) -> slice:
    """The pages of a prompt that are neither sinks nor in the recent window of its end."""
    return slice(SINK_PAGES * PAGE_TOKENS, prompt - WINDOW_PAGES * PAGE_TOKENS)


def _in_codec(kv: KV, tokens: slice, codec: str) -> KV:
    """K and V with some tokens stored in `codec` and read back."""
    found = []
    for k, v in kv:
        k_pages, v_pages = (
            x[0, :, tokens].reshape(x.shape[1], -1, PAGE_TOKENS, x.shape[3]).transpose(0, 1) for x in (k, v)
        )
        back = decode(encode(codec, k_pages, v_pages), k.dtype)
        out = [x.clone() for x in (k, v)]
        for whole, part in zip(out, back, strict=True):
            whole[0, :, tokens] = part.transpose(0, 1).flatten(1, 2)
        found.append((out[0], out[1]))
    return found


def _quantised(codec: str) -> Read:
    return lambda kv, prompt: (_in_codec(kv, _far(prompt), codec), None)


def _evicted(share: float) -> Read:
    """The first `share` of the far pages is gone, the same in all layers: what a sliding window leaves."""

    def read(kv: KV, prompt: int) -> tuple[KV, Tensor | None]:
        far = _far(prompt)
        pages = (far.stop - far.start) // PAGE_TOKENS
        gone = torch.zeros(prompt, dtype=torch.bool)
        gone[far.start : far.start + int(pages * share) * PAGE_TOKENS] = True
        return kv, gone

    return read


LINEAGES: dict[str, Read] = {
    "context in int8": _quantised("int8"),
    "context in int4": _quantised("int4"),
    "a quarter of the context gone": _evicted(0.25),
    "half of the context gone": _evicted(0.5),
    "all of the far context gone": _evicted(1.0),
}


@torch.no_grad()
def _continue(model: Any, kv: KV, ids: Tensor, start: int, gone: Tensor | None = None) -> tuple[Tensor, KV]:
    """Run ids[start:] over K and V of the tokens before; `gone` tokens are not seen. Logits (T, V), all K and V."""
    cache = DynamicCache()
    for layer, (k, v) in enumerate(kv):
        cache.update(k[:, :, :start].clone(), v[:, :, :start].clone(), layer)
    mask = None
    if gone is not None:
        length = ids.shape[1]
        seen = torch.ones(length - start, length, dtype=torch.bool).tril(start)
        seen[:, : len(gone)] &= ~gone
        mask = torch.zeros(1, 1, length - start, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    out = model(
        ids[:, start:], past_key_values=cache, attention_mask=mask, position_ids=torch.arange(start, ids.shape[1])[None]
    )
    return out.logits[0], [(layer.keys, layer.values) for layer in cache.layers]


def _rewritten(model: Any, read: Read, turn: Turn) -> KV:
    """Exact K and V, but for the first answer's, which were computed over a context read with loss."""
    kv, gone = read([(k[:, :, : turn.prompt], v[:, :, : turn.prompt]) for k, v in turn.kv], turn.prompt)
    _, after = _continue(model, kv, turn.ids[:, : turn.end], turn.prompt, gone)
    out = [(k.clone(), v.clone()) for k, v in turn.kv]
    for (k, v), (k_new, v_new) in zip(out, after, strict=True):
        k[:, :, turn.prompt : turn.end] = k_new[:, :, turn.prompt :]
        v[:, :, turn.prompt : turn.end] = v_new[:, :, turn.prompt :]
    return out


def _stored(codec: str, turn: Turn) -> KV:
    return _in_codec(turn.kv, slice(turn.prompt, turn.end), codec)


def _row(model: Any, turns: Sequence[Turn], name: str, kind: str, make: Callable[[Turn], KV]) -> dict[str, Any]:
    """Error of the first answer's pages, and what it does to the second turn."""
    k_error, v_error, kl, agree, accuracy, exact_accuracy = (list[float]() for _ in range(6))
    for turn in turns:
        kv = make(turn)
        part = slice(turn.prompt, turn.end)
        for errors, at in ((k_error, 0), (v_error, 1)):
            errors.append(float(np.mean([_relative(a[at], b[at], part) for a, b in zip(kv, turn.kv, strict=True)])))
        mine = torch.log_softmax(_continue(model, kv, turn.ids, turn.end)[0].double(), -1)
        truth = turn.ids[0, turn.end + 1 :]
        kl.append(float((turn.log_probs.exp() * (turn.log_probs - mine)).sum(-1).mean()))
        agree.append(float((mine.argmax(-1) == turn.log_probs.argmax(-1)).float().mean()))
        accuracy.append(float((mine.argmax(-1)[:-1] == truth).float().mean()))
        exact_accuracy.append(float((turn.log_probs.argmax(-1)[:-1] == truth).float().mean()))
    return {
        "setting": name,
        "kind": kind,
        "k_error": float(np.mean(k_error)),
        "v_error": float(np.mean(v_error)),
        "kl": float(np.mean(kl)),
        "kl_worst": float(np.max(kl)),
        "agreement": float(np.mean(agree)),
        "accuracy": float(np.mean(accuracy)),
        "accuracy_exact": float(np.mean(exact_accuracy)),
        "texts": len(turns),
    }


def _relative(a: Tensor, b: Tensor, part: slice) -> float:
    """Relative root-mean-square error of tokens `part`."""
    return float((a[:, :, part] - b[:, :, part]).norm() / b[:, :, part].norm())
