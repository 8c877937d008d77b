"""Recording: serve contents through the runtime, exact and native, and keep what attention did."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.library import TraceLibrary
from pikv_env.workloads.content import ContentSpec, build_contents
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.engine import Engine
from pikv_runtime.ledger.state import CODECS
from pikv_runtime.models.segments import ForwardResult
from pikv_runtime.requests import Request, RequestList, chain_hashes

RECORDING = RuntimeConfig(read="exact", router="all", codec="native", cap_bytes=None, audit_share=0.0, observe="first")
DEFAULT_KINDS = ("facts", "needle", "copy", "code", "prose", "dictionary", "dialogue", "regime")


class RecordingEngine(Engine):
    """An engine that keeps every observation, and the tags and codec errors of every finished request's pages."""

    def __init__(self, model: Any, config: RuntimeConfig, on_request: Callable[[], None] | None = None) -> None:
        super().__init__(model, config)
        self.seen: dict[int, list[Any]] = {}
        self.pages: dict[int, tuple[NDArray[np.int8], NDArray[np.float32]]] = {}
        self._on_request = on_request

    def _signal(self, result: ForwardResult) -> None:
        super()._signal(result)
        s = self.ledger
        for o in result.observations:
            self.seen.setdefault(int(s.slot_request[0, o.slot]), []).append(o)
        for r in np.flatnonzero(s.slot_plan[0] > 0).tolist():
            q = int(s.slot_request[0, r])
            if s.req_generated[0, q] + 1 >= s.req_output[0, q]:
                full = int(s.slot_tokens[0, r] + s.slot_plan[0, r]) // s.page_tokens
                blocks = s.page_block[0, r, :full]
                self.pages[q] = (s.block_tag[0, blocks].copy(), s.block_error[0, blocks].copy())
                if self._on_request is not None:
                    self._on_request()


def _request(number: int, content: ContentSpec, page_tokens: int, gap_s: float) -> Request:
    blocks = (len(content.ids) + content.output_tokens) // page_tokens
    hashes = np.zeros(blocks, np.int64)  # zero: the continuation's blocks are not shared while recording
    prompt = chain_hashes(content.ids, page_tokens)
    hashes[: len(prompt)] = prompt
    return Request(
        number,
        number * gap_s,
        len(content.ids),
        content.output_tokens,
        hashes,
        content=number,
        prompt_ids=content.ids.astype(np.int32),
    )


def record(
    model: Any,
    contents: Sequence[ContentSpec],
    config: RuntimeConfig = RECORDING,
    *,
    provenance: dict[str, Any] | None = None,
    on_request: Callable[[], None] | None = None,
) -> TraceLibrary:
    """Serve `contents` exactly and return the library of their attention traces.

    Args:
        model: a Hugging Face MoE model.
        contents: prompts and output lengths.
        config: `page_tokens` and `observe_tokens` count; reading is exact and storage native whatever it says.
        provenance: where this comes from; JSON values.
        on_request: called after every finished request (for a progress bar).
    """
    exact = replace(RECORDING, page_tokens=config.page_tokens, observe_tokens=config.observe_tokens)
    # Arrivals spaced on the model clock so that the uncapped reference stays below saturation.
    requests = tuple(_request(i, c, exact.page_tokens, gap_s=1.0) for i, c in enumerate(contents))
    engine = RecordingEngine(model, exact, on_request)
    workload = RequestList("recording", float(len(requests)), requests)
    for _ in engine.run(workload):
        pass
    return _library(engine, contents, exact, provenance or {})


def fingerprint(model: Any) -> str:
    """A short hash of the model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _library(
    engine: RecordingEngine, contents: Sequence[ContentSpec], config: RuntimeConfig, provenance: dict[str, Any]
) -> TraceLibrary:
    s = engine.ledger
    families = tuple(dict.fromkeys(c.family for c in contents))
    count, layers, experts, pages = len(contents), s.layers, s.experts, s.page_block.shape[2]
    steps = max(-(-c.output_tokens // config.observe_tokens) for c in contents)
    tags = np.full((count, layers, pages), -1, np.int8)
    error = np.zeros((count, layers, pages, len(CODECS)), np.float32)
    mass = np.zeros((count, steps, layers, pages), np.float32)
    score = np.zeros_like(mass)
    gate = np.full((count, steps, layers, experts), 1.0 / experts, np.float32)
    ids = np.full((count, pages * config.page_tokens), -1, np.int32)
    for q, content in enumerate(contents):
        tag, err = (_to_last_page(a, content, config.page_tokens) for a in engine.pages[q])
        tags[q, :, : len(tag)] = tag.T
        error[q, :, : len(err)] = err.transpose(1, 0, 2)
        full = np.concatenate([content.ids, engine.outputs[q]])
        ids[q, : len(full)] = full
        _observations(engine.seen.get(q, []), q, content, config, mass, score, gate)
    return TraceLibrary(
        families=families,
        page_tokens=config.page_tokens,
        observe_tokens=config.observe_tokens,
        layers=layers,
        experts=experts,
        model=fingerprint(engine.model),
        prompt_tokens=np.array([len(c.ids) for c in contents]),
        output_tokens=np.array([c.output_tokens for c in contents]),
        family_of=np.array([families.index(c.family) for c in contents]),
        group_of=np.array([c.group for c in contents]),
        turn_of=np.array([c.turn for c in contents]),
        shared_tokens=np.array([c.shared_tokens for c in contents]),
        chain=_chains(ids, config.page_tokens),
        tags=tags,
        mass=mass,
        score=score,
        gate=gate,
        error=error,
        token_ids=ids,
        provenance=provenance,
    ).check()


def _to_last_page(rows: NDArray, content: ContentSpec, page_tokens: int) -> NDArray:
    """The last token is never fed back, so a page that ends with it never fills: it takes its neighbour's row."""
    missing = (len(content.ids) + content.output_tokens) // page_tokens - len(rows)
    return np.concatenate([rows, rows[-1:].repeat(max(0, missing), axis=0)])


def _observations(
    seen: Sequence[Any],
    q: int,
    content: ContentSpec,
    config: RuntimeConfig,
    mass: NDArray[np.float32],
    score: NDArray[np.float32],
    gate: NDArray[np.float32],
) -> None:
    """Write one request's observations; the step after its last is never decoded, so the last one may repeat."""
    due = -(-content.output_tokens // config.observe_tokens)
    for o in range(due):
        if not seen:  # a one-token output has no decode step: attend to the last page
            mass[q, o, :, (len(content.ids) - 1) // config.page_tokens] = 1.0
            continue
        observation = seen[min(o, len(seen) - 1)]
        width = observation.mass.shape[1]
        mass[q, o, :, :width] = observation.mass / observation.mass.sum(1, keepdims=True)
        score[q, o, :, :width] = observation.score
        gate[q, o] = observation.gate


def _chains(ids: NDArray[np.int32], page_tokens: int) -> NDArray[np.int64]:
    chain = np.zeros((len(ids), ids.shape[1] // page_tokens), np.int64)
    for q, row in enumerate(ids):
        hashes = chain_hashes(row[row >= 0], page_tokens)
        chain[q, : len(hashes)] = hashes
    return chain


def record_kinds(
    model: Any,
    kinds: Sequence[str] = DEFAULT_KINDS,
    contents_per_kind: int = 12,
    seed: int = 0,
    *,
    prompt_range: tuple[int, int] = (128, 900),
    output_range: tuple[int, int] = (16, 128),
    provenance: dict[str, Any] | None = None,
    on_request: Callable[[], None] | None = None,
) -> TraceLibrary:
    """Record `contents_per_kind` contents of each kind; see `record`."""
    contents = [
        content
        for kind in kinds
        for content in build_contents(
            kind, contents_per_kind, seed, prompt_range=prompt_range, output_range=output_range
        )
    ]
    return record(model, contents, provenance=provenance, on_request=on_request)
