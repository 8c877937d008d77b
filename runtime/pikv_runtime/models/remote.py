"""Queries travel to pages: two messages per layer between a request's owner and the ranks of its pages.

Out go queries, with one bit for every page that sparse reading may leave out; back come partial outputs in the
model's dtype and their log-sum-exp in fp32. A decode row costs `H_q(e·d_qk + e·d_v + 4)` bytes for each layer and
remote rank that holds some of its pages, e bytes to a number (`Geometry.query_bytes`), and an eighth of a byte for each
page there; what observations add is counted apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_runtime.models.plan import Ask, OwnerBatch
from pikv_runtime.models.reading import Answer, Question
from pikv_runtime.transport import Transport, pack, packed_bytes, unpack

Mask = NDArray[np.bool_]
Pair = tuple[int, int]
"""(owner, other rank)"""
Parts = list[tuple[Sequence[int], torch.dtype]]


@dataclass(frozen=True)
class QueryShape:
    """What one query is."""

    heads: int
    head_dim: int
    v_dim: int
    """Width of a head's output."""
    dtype: torch.dtype
    device: torch.device

    @property
    def question_bytes(self) -> int:
        """Bytes of one query on the wire."""
        return self.heads * self.head_dim * self.dtype.itemsize

    @property
    def answer_bytes(self) -> int:
        """Bytes of one partial output and its log-sum-exp on the wire."""
        return self.heads * (self.v_dim * self.dtype.itemsize + 4)


class RemoteReads:
    """Sends questions and answers of one layer. Both ends derive all sizes from the plan."""

    def __init__(self, transport: Transport, plan: Sequence[OwnerBatch], query: QueryShape, sparse: bool) -> None:
        self._transport, self._plan, self._query, self._sparse = transport, plan, query, sparse

    def asks(self, layer: int) -> dict[Pair, Ask]:
        """What owners read on other ranks, for all pairs that have something to read."""
        pairs = {}
        for batch in self._plan:
            for rank in range(self._transport.world):
                if rank != batch.owner and batch.tokens:
                    ask = batch.ask(layer, rank)
                    if len(ask.tokens):
                        pairs[batch.owner, rank] = ask
        return pairs

    def send_questions(
        self, asks: Mapping[Pair, Ask], queries: Mapping[int, Tensor], reads: Mapping[int, Mask]
    ) -> dict[Pair, Question]:
        """Deliver questions.

        Args:
            asks: From `asks`.
            queries: Local owner -> (tokens, H_q, D).
            reads: Local owner -> (rows, P) read set; sent in sparse reading only (an exact one is known).

        Returns:
            (owner, local rank) -> the question that arrived.
        """

        def message(owner: int, ask: Ask) -> Tensor:
            q = queries[owner][torch.from_numpy(ask.tokens)]
            bits = np.packbits(reads[owner][ask.rows][self._optional(owner, ask)])
            return pack([q, torch.from_numpy(bits).to(q.device)])

        messages = self._exchange(
            {pair: message(pair[0], asks[pair]) for pair in asks if pair[0] in queries},
            {pair: packed_bytes(self._question_parts(pair[0], ask)) for pair, ask in asks.items()},
        )
        for (owner, _), ask in asks.items():
            if owner in queries:
                self._recount("prefill_query", (len(ask.tokens) - len(ask.rows)) * self._query.question_bytes)
        return {pair: self._question(pair[0], asks[pair], m) for pair, m in messages.items()}

    def send_answers(self, asks: Mapping[Pair, Ask], answers: Mapping[Pair, Answer]) -> dict[Pair, Answer]:
        """Return answers to the owners: (local owner, rank) -> answer."""

        def turned(pair: Pair) -> Pair:
            return pair[1], pair[0]

        def message(owner: int, ask: Ask, given: Answer) -> Tensor:
            seen = torch.from_numpy(self._readable(owner, ask)[ask.observed])
            return pack([given.out.to(self._query.dtype), given.lse, given.page_lse[seen.to(given.page_lse.device)]])

        messages = self._exchange(
            {turned(pair): message(pair[0], asks[pair], given) for pair, given in answers.items()},
            {turned(pair): packed_bytes(self._answer_parts(pair[0], ask)) for pair, ask in asks.items()},
        )
        for owner, rank in answers:
            ask = asks[owner, rank]
            self._recount("prefill_query", (len(ask.tokens) - len(ask.rows)) * self._query.answer_bytes)
            self._recount("observation", packed_bytes(self._answer_parts(owner, ask)[2:]))
        return {turned(pair): self._answer(pair[1], asks[turned(pair)], m) for pair, m in messages.items()}

    def _exchange(self, outgoing: Mapping[Pair, Tensor], sizes: Mapping[Pair, int]) -> dict[Pair, Tensor]:
        """One all-to-all of messages (from, to); returns those that came to local ranks."""
        world, local = self._transport.world, self._transport.local_ranks
        nothing = torch.empty(0, dtype=torch.uint8)
        received = self._transport.all_to_all(
            [[outgoing.get((i, dst), nothing) for dst in range(world)] for i in local],
            [[sizes.get((src, i), 0) for src in range(world)] for i in local],
            "decode_query",
        )
        return {
            (src, i): messages[src].to(self._query.device)  # links may be staged through the host
            for i, messages in zip(local, received, strict=True)
            for src in range(world)
            if (src, i) in sizes
        }

    def _recount(self, purpose: str, nbytes: int) -> None:
        self._transport.recount("decode_query", purpose, nbytes)

    def _readable(self, owner: int, ask: Ask) -> Mask:
        """(rows, P) pages that the asking rows may read on the asked rank."""
        here: Mask = self._plan[owner].rank_of[ask.layer][ask.rows] == ask.rank
        return here

    def _optional(self, owner: int, ask: Ask) -> Mask:
        """(rows, P) of them, those that a read set may leave out: each is a bit of the message."""
        if not self._sparse:
            return np.zeros((len(ask.rows), self._plan[owner].blocks.shape[1]), bool)
        return self._readable(owner, ask) & ~self._plan[owner].fixed[ask.rows]

    def _question(self, owner: int, ask: Ask, message: Tensor) -> Question:
        batch = self._plan[owner]
        queries, bits = unpack(message, self._question_parts(owner, ask))
        optional = self._optional(owner, ask)
        read = np.ones((len(ask.rows), batch.blocks.shape[1]), bool)
        read[optional] = np.unpackbits(bits.cpu().numpy(), count=int(optional.sum()))
        return Question(batch, ask, queries, read)

    def _question_parts(self, owner: int, ask: Ask) -> Parts:
        q, bits = self._query, int(self._optional(owner, ask).sum())
        return [((len(ask.tokens), q.heads, q.head_dim), q.dtype), ((-(-bits // 8),), torch.uint8)]

    def _answer(self, owner: int, ask: Ask, message: Tensor) -> Answer:
        out, lse, seen = unpack(message, self._answer_parts(owner, ask))
        readable = self._readable(owner, ask)[ask.observed]
        page_lse = seen.new_full((*readable.shape, self._query.heads), -torch.inf)
        page_lse[torch.from_numpy(readable).to(seen.device)] = seen
        return Answer(out.float(), lse, page_lse)

    def _answer_parts(self, owner: int, ask: Ask) -> Parts:
        q, n, seen = self._query, len(ask.tokens), int(self._readable(owner, ask)[ask.observed].sum())
        return [((n, q.heads, q.v_dim), q.dtype), ((n, q.heads), torch.float32), ((seen, q.heads), torch.float32)]
