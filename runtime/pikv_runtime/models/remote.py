"""Queries travel to pages: two messages per layer between a request's owner and the ranks of its pages."""

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


class RemoteReads:
    """Sends questions and answers of one layer. Both ends derive all sizes from the plan."""

    def __init__(self, transport: Transport, plan: Sequence[OwnerBatch], query: QueryShape, sparse: bool) -> None:
        self._transport, self._plan, self._query, self._sparse = transport, plan, query, sparse

    def asks(self, layer: int) -> dict[tuple[int, int], Ask]:
        """(owner, other rank) -> what the owner reads there, for all pairs that have something to read."""
        pairs = {}
        for batch in self._plan:
            for rank in range(self._transport.world):
                if rank != batch.owner and batch.tokens:
                    ask = batch.ask(layer, rank)
                    if len(ask.tokens):
                        pairs[batch.owner, rank] = ask
        return pairs

    def send_questions(
        self, asks: Mapping[tuple[int, int], Ask], queries: Mapping[int, Tensor], reads: Mapping[int, Mask]
    ) -> dict[tuple[int, int], Question]:
        """Deliver questions.

        Args:
            asks: From `asks`.
            queries: Local owner -> (tokens, H_q, D).
            reads: Local owner -> (rows, P) read set; sent in sparse reading only (an exact one is known).

        Returns:
            (owner, local rank) -> the question that arrived.
        """

        def message(owner: int, rank: int) -> Tensor:
            ask = asks[owner, rank]
            q = queries[owner][torch.from_numpy(ask.tokens)]
            bits = np.packbits(reads[owner][ask.rows], axis=1) if self._sparse else np.zeros(0, np.uint8)
            return pack([q, torch.from_numpy(bits).to(q.device)])

        messages = self._exchange(
            {pair: message(*pair) for pair in asks if pair[0] in queries},
            {pair: packed_bytes(self._question_parts(pair, ask)) for pair, ask in asks.items()},
            self._prefill_share(asks, reverse=False),
        )
        return {pair: self._question(pair, asks[pair], m) for pair, m in messages.items()}

    def send_answers(
        self, asks: Mapping[tuple[int, int], Ask], answers: Mapping[tuple[int, int], Answer]
    ) -> dict[tuple[int, int], Answer]:
        """Return answers to the owners: (local owner, rank) -> answer."""

        def turned(pair: tuple[int, int]) -> tuple[int, int]:
            return pair[1], pair[0]

        sizes = {turned(p): packed_bytes(self._answer_parts(p, ask)) for p, ask in asks.items()}
        outgoing = {turned(p): pack([a.out, a.lse, a.page_lse]) for p, a in answers.items()}
        messages = self._exchange(outgoing, sizes, self._prefill_share(asks, reverse=True))
        return {
            turned(pair): Answer(*unpack(m, self._answer_parts(turned(pair), asks[turned(pair)])))
            for pair, m in messages.items()
        }

    def _exchange(
        self, outgoing: Mapping[tuple[int, int], Tensor], sizes: Mapping[tuple[int, int], int], prefill: int
    ) -> dict[tuple[int, int], Tensor]:
        """One all-to-all of messages (from, to); returns those that came to local ranks."""
        world, local = self._transport.world, self._transport.local_ranks
        nothing = torch.empty(0, dtype=torch.uint8)
        received = self._transport.all_to_all(
            [[outgoing.get((i, dst), nothing) for dst in range(world)] for i in local],
            [[sizes.get((src, i), 0) for src in range(world)] for i in local],
            "decode_query",
        )
        self._transport.recount("decode_query", "prefill_query", prefill)
        return {
            (src, i): messages[src].to(self._query.device)  # links may be staged through the host
            for i, messages in zip(local, received, strict=True)
            for src in range(world)
            if (src, i) in sizes
        }

    def _prefill_share(self, asks: Mapping[tuple[int, int], Ask], reverse: bool) -> int:
        """Bytes that local ranks send for prefill tokens: queries, or (reverse) answers."""
        q, total = self._query, 0
        per_token = q.heads * (q.v_dim + 1) * 4 if reverse else q.heads * q.head_dim * q.dtype.itemsize
        for (owner, rank), ask in asks.items():
            if (rank if reverse else owner) in self._transport.local_ranks:
                total += (len(ask.tokens) - len(ask.rows)) * per_token
        return total

    def _question(self, pair: tuple[int, int], ask: Ask, message: Tensor) -> Question:
        batch = self._plan[pair[0]]
        q, bits = unpack(message, self._question_parts(pair, ask))
        if self._sparse:
            pages = batch.blocks.shape[1]
            read = np.unpackbits(bits.cpu().numpy(), axis=1, count=pages).astype(bool)
        else:
            read = np.ones((len(ask.rows), batch.blocks.shape[1]), bool)
        return Question(batch, ask, q, read)

    def _question_parts(self, pair: tuple[int, int], ask: Ask) -> Parts:
        q, pages = self._query, self._plan[pair[0]].blocks.shape[1]
        bitmask = (len(ask.rows), -(-pages // 8)) if self._sparse else (0, 0)
        return [((len(ask.tokens), q.heads, q.head_dim), q.dtype), (bitmask, torch.uint8)]

    def _answer_parts(self, pair: tuple[int, int], ask: Ask) -> Parts:
        q, n, pages = self._query, len(ask.tokens), self._plan[pair[0]].blocks.shape[1]
        return [
            ((n, q.heads, q.v_dim), torch.float32),
            ((n, q.heads), torch.float32),
            ((len(ask.observed), pages, q.heads), torch.float32),
        ]
