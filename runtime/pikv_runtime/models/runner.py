"""The model runner: one packed forward pass per iteration and rank, over the ledger's pages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_runtime.cache import CentroidTable, PageDirectory, PagedStore, Shadows
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.ledger.state import CODECS
from pikv_runtime.models.adapter import ForwardPass, paged_attention
from pikv_runtime.models.experts import join_exchange
from pikv_runtime.models.gates import Gates
from pikv_runtime.models.geometry import decoder_layers, geometry_of
from pikv_runtime.models.outcome import (
    Outcome,
    filled_pages,
    observed,
    result,
    share,
    stack_observations,
)
from pikv_runtime.models.plan import OwnerBatch, build_plan
from pikv_runtime.models.remote import QueryShape
from pikv_runtime.models.seeding import seed_shadows
from pikv_runtime.models.segments import CacheView, Filled, ForwardResult, Observation, Segment
from pikv_runtime.models.step import Step, Tensors
from pikv_runtime.models.tags import OpenPageChoices
from pikv_runtime.profiles import Geometry
from pikv_runtime.routers import ROUTERS
from pikv_runtime.transport import LocalTransport, Transport

I4 = NDArray[np.int32]

__all__ = ["CacheView", "Filled", "ForwardResult", "ModelRunner", "Observation", "Segment", "geometry_of_model"]


def geometry_of_model(model: Any, latent: bool = True) -> Geometry:
    """The geometry that prices and page bytes of a model follow from: what the ledger must know of it.

    `latent` as in `RuntimeConfig`. Sliding layers count as any other: their pages are kept.

    Raises:
        ValueError: The runner cannot serve this model.
    """
    g = geometry_of(model, Gates(decoder_layers(model)).experts, 1, latent)  # pages play no part here
    return Geometry(
        name=str(model.config.model_type),
        layers=g.layers,
        experts=g.experts,
        query_heads=g.heads,
        kv_heads=g.kv_heads,
        head_dim=int(model.config.v_head_dim) if g.v_from_k else g.head_dim,
        native_bytes=g.dtype.itemsize,
        v_head_dim=0 if g.v_from_k or g.v_dim == g.head_dim else g.v_dim,
        kv_lora_rank=g.v_from_k,
        rope_dim=g.head_dim - g.v_from_k if g.v_from_k else 0,
    )


class ModelRunner:
    """Runs a model for the local ranks and keeps their tensors in agreement with the ledger.

    In lockstep: every process calls `apply_events`, `forward` and `drop_shadow` with the same arguments, in
    the same order, whether or not it owns a request. The model is unchanged between calls.
    """

    def __init__(
        self,
        model: Any,
        config: RuntimeConfig,
        transport: Transport | None = None,
        *,
        blocks: int | None = None,
    ) -> None:
        """Allocate nothing yet; `blocks` is the ledger's number of block slots (`config.blocks` if None)."""
        self.model, self.config = model, config
        self.blocks = config.blocks if blocks is None else blocks
        self.transport = transport or LocalTransport()
        self.gates = Gates(decoder_layers(model))
        self.geometry = g = geometry_of(model, self.gates.experts, config.page_tokens, config.latent)
        kv = (g.kv_heads, g.head_dim)
        self.stores = {
            rank: PagedStore(g.layers, *kv, g.page_tokens, g.dtype, self.blocks, g.device, g.v_dim, g.v_from_k)
            for rank in self.transport.local_ranks
        }
        self.centroids = CentroidTable(g.layers, *kv, self.blocks, g.device)
        self.shadows = Shadows(g.layers, *kv, g.dtype)
        self.directory = PageDirectory(self.stores, self.transport, self.blocks, g.layers)
        self.copies = config.copies if config.write == "copies" else 1
        self._choices = OpenPageChoices(g.layers, g.experts, g.page_tokens, self.copies)
        self._audited: set[int] = set()  # slots with a shadow on their owner; replicated, as shadows are not

    def apply_events(self, events: I4) -> None:
        """Do to tensors what the ledger decided, events (M, 5) in order; due before the next `forward`."""
        self.directory.apply(events)

    def forward(self, segments: Sequence[Segment], view: CacheView) -> ForwardResult:
        """Compute one iteration.

        Args:
            segments: All ranks' segments, at most one per slot; the same on every rank except for token
                ids, of which only those of local owners matter.
            view: The ledger, as planned: pages for the new tokens are placed.

        Raises:
            ValueError: Segments that do not fit the ledger, or an unknown router.
        """
        with torch.no_grad():
            step = self.begin(segments, view)
            return self.finish(step, self._run(step).argmax(-1))

    def logits(self, segments: Sequence[Segment], view: CacheView) -> tuple[Tensor, ForwardResult]:
        """Logits (T, vocabulary) of every local token in packed order, and what `forward` returns."""
        with torch.no_grad():
            step = self.begin(segments, view)
            logits = self._run(step, every_token=True)
            return logits, self.finish(step, logits[self._last_tokens(step)].argmax(-1))

    def begin(self, segments: Sequence[Segment], view: CacheView, real: Tensor | None = None) -> Step:
        """Plan an iteration and open the pages that the ledger placed for it; `real` as in `Step`."""
        ROUTERS[view.router]
        shape = (self.blocks, self.geometry.layers)
        if view.block_codec.shape != shape:
            raise ValueError(f"the ledger has {view.block_codec.shape} (blocks, layers), the runner {shape}")
        plan = build_plan(segments, view, self.config.page_tokens, self.transport.world, self.geometry.windows)
        self.directory.open(view.block_codec, view.block_rank)
        self._seed(segments, view)
        g = self.geometry
        tensors = Tensors(self.stores, self.centroids, self.shadows)
        query = QueryShape(g.heads, g.head_dim, g.v_dim, g.dtype, g.device)
        return Step(plan, view, tensors, self.transport, self.gates, query, g.scale, real)

    def finish(self, step: Step, next_tokens: Tensor) -> ForwardResult:
        """Bind tags, measure filled pages and share it all; `next_tokens` is (local segments,)."""
        own = self._outcomes(step, next_tokens.to(torch.int32).cpu())
        outcomes = share(self.transport, step.plan, own, step.view, self.geometry, self.copies)
        for batch, outcome in zip(step.plan, outcomes, strict=True):
            self.centroids.put(self._filled_blocks(batch, step.view), outcome.means)
        return result(step.plan, outcomes, self.config.page_tokens)

    def drop_shadow(self, slot: int) -> None:
        """Free the exact keys of a request that left its slot."""
        self.shadows.drop(slot)
        self._audited.discard(slot)

    def nbytes(self) -> dict[int, dict[str, int]]:
        """True bytes of resident pages, by local rank and codec."""
        return {rank: store.nbytes() for rank, store in self.stores.items()}

    def host_nbytes(self) -> dict[int, dict[str, int]]:
        """True bytes of pages in host memory, by local rank and codec."""
        return {rank: store.host.nbytes() for rank, store in self.stores.items()}

    def _seed(self, segments: Sequence[Segment], view: CacheView) -> None:
        audited = {s.slot: s for s in segments if s.audited}
        fresh = [s for slot, s in audited.items() if slot not in self._audited]
        self._audited |= audited.keys()
        hit = [s for s in fresh if s.start > 0]
        seed_shadows(hit, view, self.stores, self.shadows, self.transport, self.geometry)

    def _run(self, step: Step, every_token: bool = False) -> Tensor:
        """Logits of the last token of every local segment, in packed order."""
        device = self.geometry.device
        last = self._last_tokens(step)
        if not len(last):
            step.serve_idle(self.geometry.layers, partial(join_exchange, self.model))
            return torch.zeros(0, self.model.config.vocab_size, device=device)
        ids = np.concatenate([batch.input_ids for batch in step.local])
        positions = np.concatenate([batch.positions for batch in step.local])
        latents = self._latent_cache()
        with paged_attention(self.model), self.gates.tapped():
            output = self.model(
                input_ids=torch.from_numpy(ids)[None].to(device),
                position_ids=torch.from_numpy(positions)[None].to(device),
                logits_to_keep=0 if every_token else last,
                use_cache=False,
                past_key_values=latents,
                pikv=ForwardPass(step, latents),
            )
        logits: Tensor = output.logits[0]
        return logits

    def _latent_cache(self) -> Any:
        """What shows the latents of one forward pass, where pages hold latents; None elsewhere."""
        if not self.geometry.v_from_k:
            return None
        from pikv_runtime.models.hf_cache import LayerCache  # needs transformers, as the model does

        return LayerCache(self.geometry.layers, latent=True)

    def _last_tokens(self, step: Step) -> Tensor:
        """Where each local segment's last token is among the packed ones, (segments,)."""
        lengths = [len(s.token_ids) for batch in step.local for s in batch.segments]
        return torch.from_numpy(np.cumsum(lengths, dtype=np.int64) - 1).to(self.geometry.device)

    def _outcomes(self, step: Step, next_tokens: Tensor) -> list[Outcome]:
        """What every local batch found out."""
        outcomes, first_segment, first_token = [], 0, 0
        for batch in step.local:
            until = first_segment + len(batch.segments)
            outcomes.append(
                Outcome(
                    *self._measure(batch, step.view),
                    *self._observations(step, batch),
                    next_tokens=next_tokens[first_segment:until],
                    tags=torch.from_numpy(self._bind_tags(batch, step.real, first_token)),
                )
            )
            first_segment, first_token = until, first_token + batch.tokens
        return outcomes

    def _bind_tags(self, batch: OwnerBatch, real: Tensor | None, first: int) -> NDArray[np.int8]:
        """Experts (F, L, copies), tags first, of the pages that a batch filled; its tokens are packed from `first`."""
        tags = [np.zeros((0, self.geometry.layers, self.copies), np.int8)]
        if batch.tokens:
            choices = self.gates.choices() if real is None else self.gates.choices()[:, real]
            chosen = choices[:, first : first + batch.tokens].cpu().numpy().astype(np.int8)
            at = 0
            for segment in batch.segments:
                until = at + len(segment.token_ids)
                tags.append(self._choices.add(segment.slot, segment.start, chosen[:, at:until]))
                at = until
        return np.concatenate(tags)

    def _measure(self, batch: OwnerBatch, view: CacheView) -> tuple[Tensor, Tensor]:
        """Mean keys (F, L, H_kv, D) and codec errors (F, L, K) of the pages that a batch filled."""
        g = self.geometry
        blocks = self._filled_blocks(batch, view)
        if len(blocks) == 0:
            return torch.zeros(0, g.layers, g.kv_heads, g.head_dim), torch.zeros(0, g.layers, len(CODECS))
        layers = np.tile(np.arange(g.layers), len(blocks))
        means, errors = self.stores[batch.owner].measure(layers, np.repeat(blocks, g.layers))
        return means.view(len(blocks), g.layers, *means.shape[1:]), errors.view(len(blocks), g.layers, -1)

    def _observations(self, step: Step, batch: OwnerBatch) -> tuple[Tensor, Tensor, Tensor]:
        found = [step.observer.observations[slot] for slot in observed(batch)]
        return stack_observations(found, self.geometry.layers, step.view.page_block.shape[1], self.geometry.experts)

    def _filled_blocks(self, batch: OwnerBatch, view: CacheView) -> I4:
        filled = filled_pages(batch, self.config.page_tokens)
        return np.array([view.page_block[segment.slot, page] for segment, page in filled], np.int32)
