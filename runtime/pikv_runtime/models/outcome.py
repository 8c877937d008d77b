"""What an iteration found out, shared so that every rank's ledger can take the same next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_runtime.ledger.state import CODECS
from pikv_runtime.models.geometry import Geometry
from pikv_runtime.models.plan import OwnerBatch
from pikv_runtime.models.segments import CacheView, Filled, ForwardResult, Observation, Segment
from pikv_runtime.transport import Transport, pack, packed_bytes, unpack

F4 = NDArray[np.float32]
Parts = list[tuple[Sequence[int], torch.dtype]]


@dataclass(frozen=True)
class Outcome:
    """One owner's findings, as tensors that travel; F filled pages, O observations, S segments."""

    means: Tensor
    """(F, L, H_kv, D) fp32 mean keys of filled pages."""
    errors: Tensor
    """(F, L, K) fp32"""
    mass: Tensor
    """(O, L, P) fp32"""
    score: Tensor
    """(O, L, P) fp32"""
    gate: Tensor
    """(O, L, E) fp32"""
    next_tokens: Tensor
    """(S,) int32"""
    tags: Tensor
    """(F, L, copies) int8 most chosen experts, the tag first."""

    def tensors(self) -> list[Tensor]:
        """In the order in which they travel."""
        return [self.means, self.errors, self.mass, self.score, self.gate, self.next_tokens, self.tags]


def filled_pages(batch: OwnerBatch, page_tokens: int) -> list[tuple[Segment, int]]:
    """(segment, page) of every page that a batch fills, in order."""
    return [
        (segment, page)
        for segment in batch.segments
        for page in range(segment.start // page_tokens, segment.end // page_tokens)
    ]


def observed(batch: OwnerBatch) -> list[int]:
    """Slots that a batch observes, in order."""
    return [segment.slot for segment in batch.decode if segment.observe]


def stack_observations(
    found: Sequence[Observation], layers: int, pages: int, experts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mass, score and gate of observations, each with a leading axis."""

    def stack(arrays: list[F4], width: int) -> Tensor:
        return torch.from_numpy(np.stack(arrays) if arrays else np.zeros((0, layers, width), np.float32))

    return (
        stack([o.mass for o in found], pages),
        stack([o.score for o in found], pages),
        stack([o.gate for o in found], experts),
    )


def share(
    transport: Transport,
    plan: Sequence[OwnerBatch],
    own: Sequence[Outcome],
    view: CacheView,
    geometry: Geometry,
    copies: int = 1,
) -> list[Outcome]:
    """Every owner's outcome, on every process; `own` are those of the local ranks, `copies` the experts of a page."""
    if transport.world == 1:
        return list(own)
    parts = [_parts(batch, view, geometry, copies) for batch in plan]
    messages = transport.all_gather(
        [pack([t.to(geometry.device) for t in outcome.tensors()]) for outcome in own],
        [packed_bytes(p) for p in parts],
    )
    return [Outcome(*unpack(message, p)) for message, p in zip(messages, parts, strict=True)]


def result(plan: Sequence[OwnerBatch], outcomes: Sequence[Outcome], page_tokens: int) -> ForwardResult:
    """All owners' outcomes as the engine wants them."""
    tokens: dict[int, int] = {}
    filled: list[Filled] = []
    observations: list[Observation] = []
    for batch, outcome in zip(plan, outcomes, strict=True):
        slots = [segment.slot for segment in batch.segments]
        tokens.update(zip(slots, outcome.next_tokens.tolist(), strict=True))
        experts, errors = outcome.tags.cpu().numpy(), outcome.errors.cpu().numpy()
        tags, also = np.ascontiguousarray(experts[..., 0]), np.ascontiguousarray(experts[..., 1:])
        pages = filled_pages(batch, page_tokens)
        filled += [Filled(s.slot, p, tags[i], errors[i], also[i]) for i, (s, p) in enumerate(pages)]
        seen = [t.cpu().numpy() for t in (outcome.mass, outcome.score, outcome.gate)]
        observations += [Observation(slot, *(x[i] for x in seen)) for i, slot in enumerate(observed(batch))]
    return ForwardResult(tokens, filled, observations)


def _parts(batch: OwnerBatch, view: CacheView, geometry: Geometry, copies: int) -> Parts:
    layers, pages = view.page_live.shape[2], view.page_block.shape[1]
    fills, seen = len(filled_pages(batch, geometry.page_tokens)), len(observed(batch))
    return [
        ((fills, layers, geometry.kv_heads, geometry.head_dim), torch.float32),
        ((fills, layers, len(CODECS)), torch.float32),
        ((seen, layers, pages), torch.float32),
        ((seen, layers, pages), torch.float32),
        ((seen, layers, geometry.experts), torch.float32),
        ((len(batch.segments),), torch.int32),
        ((fills, layers, copies), torch.int8),
    ]
