"""One iteration inside the model's layers: write the new tokens, choose, read everywhere, merge, observe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_kernels import merge_partials
from pikv_runtime.cache import CentroidTable, PagedStore, Shadows
from pikv_runtime.models.choice import read_sets, router_scores
from pikv_runtime.models.observer import Observer
from pikv_runtime.models.plan import Ask, OwnerBatch
from pikv_runtime.models.reading import Answer, Question, answer
from pikv_runtime.models.remote import QueryShape, RemoteReads
from pikv_runtime.models.segments import CacheView
from pikv_runtime.routers import ROUTERS
from pikv_runtime.transport import Transport

I8 = NDArray[np.int64]
Parts = list[tuple[Ask, Answer]]


class GatePredictor(Protocol):
    """What a step asks of the model's gates."""

    experts: int

    def predicted(self, layer: int, tokens: slice) -> Tensor:
        """Gate distribution (n, E) of packed tokens, predicted from the state before attention."""
        ...


@dataclass(frozen=True)
class Tensors:
    """All tensors behind the ledger that a step touches."""

    stores: Mapping[int, PagedStore]
    """Local rank -> store."""
    centroids: CentroidTable
    shadows: Shadows


class Step:
    """The attention of one iteration, layer by layer; handed to the model as a keyword argument."""

    def __init__(
        self,
        plan: Sequence[OwnerBatch],
        view: CacheView,
        tensors: Tensors,
        transport: Transport,
        gates: GatePredictor,
        query: QueryShape,
        scale: float,
        real: Tensor | None = None,
    ) -> None:
        """`real`: indices of the packed tokens among those that the model computes, where it pads; None: all."""
        self.real = real
        self.plan, self.view, self._tensors, self._gates = plan, view, tensors, gates
        self._scale, self._query = scale, query
        self.local = [plan[rank] for rank in transport.local_ranks]
        ends = np.cumsum([0, *(batch.tokens for batch in self.local)])
        self._first = {b.owner: int(ends[i]) for i, b in enumerate(self.local)}
        chosen = view.sparse and view.fan_out < 1.0  # else whoever asks reads everything, and need not say so
        self._remote = RemoteReads(transport, plan, query, chosen) if transport.world > 1 else None
        page_tokens = next(iter(tensors.stores.values())).page_shape[1]
        self.observer = Observer(
            self.local, view, tensors.centroids, tensors.shadows, gates.experts, page_tokens, scale
        )

    @torch.no_grad()
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None) -> Tensor:
        """Attention of the packed tokens.

        Args:
            layer: Layer index.
            q: (T, H_q, D).
            k: (T, H_kv, D).
            v: (T, H_kv, D_v); not looked at where pages keep V as a part of K.
            sinks: (H_q,) learned logits that take a share of every query's attention and give nothing back (gpt-oss);
                applied here, once, when the parts of all ranks are merged.

        Returns:
            (T, H_q, D_v) in q's dtype.
        """
        questions = {}
        for batch in self.local:
            part = slice(self._first[batch.owner], self._first[batch.owner] + batch.tokens)
            self._write(batch, layer, k[part], v[part])
            questions[batch.owner] = self._own_question(batch, layer, q[part])
        answers = self._answers(layer, questions)
        merged = []
        for batch in self.local:
            out, lse = _merge(answers[batch.owner])
            if Observer.due(batch):
                self.observer.note_mass(batch, layer, questions[batch.owner].q, lse, answers[batch.owner])
            merged.append(out if sinks is None else out * torch.sigmoid(lse - sinks.float()).unsqueeze(-1))
        return (merged[0] if len(merged) == 1 else torch.cat(merged)).to(q.dtype)

    def serve_idle(self, layers: int, after_attention: Callable[[int], None]) -> None:
        """Take part in every layer's messages without tokens of one's own; `after_attention(layer)` does the rest."""
        if self._remote is None:
            return
        shape = (0, self._query.heads, self._query.head_dim)
        nothing = torch.empty(shape, dtype=self._query.dtype, device=self._query.device)
        for layer in range(layers):
            self.attend(layer, nothing, nothing, nothing)
            after_attention(layer)

    def _write(self, batch: OwnerBatch, layer: int, k: Tensor, v: Tensor) -> None:
        if batch.tokens == 0:
            return
        self._tensors.stores[batch.owner].write(layer, batch.token_blocks, batch.token_offsets, k, v)
        first = 0
        for segment in batch.segments:
            count = len(segment.token_ids)
            if segment.audited:
                self._tensors.shadows.write(segment.slot, layer, segment.start, k[first : first + count])
            first += count

    def _own_question(self, batch: OwnerBatch, layer: int, q: Tensor) -> Question:
        """The question of a batch to its own rank, read sets chosen; scores are observed on the way."""
        rows, view, scores, gate = len(batch.decode), self.view, None, None
        sparse = view.sparse and rows > 0 and view.fan_out < 1.0  # whoever reads everything need not choose
        observed = Observer.due(batch)
        if observed or (sparse and ROUTERS[view.router].needs_gate):
            first = self._first[batch.owner]
            gate = self._gates.predicted(layer, slice(first, first + rows))
        if sparse:
            every = np.arange(rows)
            scores = router_scores(batch, layer, view, self._tensors.centroids, every, q[:rows], gate)
        if observed:
            assert gate is not None
            self.observer.note_scores(batch, layer, q, gate, scores)
        return Question(batch, batch.ask(layer, batch.owner), q, read_sets(batch, layer, view, scores))

    def _answers(self, layer: int, own: Mapping[int, Question]) -> dict[int, Parts]:
        """Local owner -> what it asked and got from every rank, its own first."""
        remote = self._remote
        asks = remote.asks(layer) if remote else {}
        arrived: dict[tuple[int, int], Question] = {}
        if remote and asks:  # every rank derives the same asks: all take part, or none does
            queries, reads = {o: x.q for o, x in own.items()}, {o: x.read for o, x in own.items()}
            arrived = remote.send_questions(asks, queries, reads)
        parts: dict[int, Parts] = {}
        replies: dict[tuple[int, int], Answer] = {}
        for rank, store in self._tensors.stores.items():
            guests = [pair for pair in arrived if pair[1] == rank]
            given = answer(store, rank, layer, [own[rank], *(arrived[p] for p in guests)], self._scale)
            parts[rank] = [(own[rank].ask, given[0])]
            replies.update(zip(guests, given[1:], strict=True))
        if remote and asks:
            for (owner, rank), part in remote.send_answers(asks, replies).items():
                parts[owner].append((asks[owner, rank], part))
        return parts


def _merge(parts: Parts) -> tuple[Tensor, Tensor]:
    """Attention over all parts, (tokens, H_q, D) and (tokens, H_q); the first part covers all tokens."""
    (_, own), others = parts[0], parts[1:]
    if not others:
        return own.out, own.lse
    outs = own.out.new_zeros(len(parts), *own.out.shape)
    lses = own.lse.new_full((len(parts), *own.lse.shape), -torch.inf)
    outs[0], lses[0] = own.out, own.lse
    for i, (ask, part) in enumerate(others, start=1):
        tokens = torch.from_numpy(ask.tokens)
        outs[i, tokens], lses[i, tokens] = part.out, part.lse
    return merge_partials(outs, lses)
