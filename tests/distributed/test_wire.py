"""What travels between ranks: how often, how many bytes, and under which name they are counted."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.engine import Engine
from pikv_runtime.ledger.state import Event
from pikv_runtime.models import load_model
from pikv_runtime.models.runner import geometry_of_model
from pikv_runtime.requests import Request, RequestList
from pikv_runtime.transport import LocalTransport

PAGE, OUTPUT = 16, 10


@functools.cache
def model(dtype: torch.dtype = torch.float32):
    torch.set_num_threads(1)
    loaded = load_model("embedded")[0]
    return loaded if dtype == torch.float32 else copy.deepcopy(loaded).to(dtype)


def workload(prompts: tuple[int, ...], output: int = OUTPUT) -> RequestList:
    rng, requests = np.random.default_rng(2), []
    for q, count in enumerate(prompts):
        ids = rng.integers(32, 127, count).astype(np.int32)
        hashes = np.zeros((count + output) // PAGE, np.int64)  # nothing is shared
        requests.append(Request(q, 0.01 * q, count, output, hashes, 0, prompt_ids=ids))
    return RequestList("wire", 0.1, tuple(requests))


class Matrix(LocalTransport):
    """Virtual ranks that remember who sent what to whom."""

    def __init__(self, ranks: int) -> None:
        super().__init__(ranks)
        self.between = np.zeros((ranks, ranks), np.int64)

    def all_to_all(self, outgoing, incoming_bytes, purpose):
        if purpose == "decode_query":
            self.between += [[message.nbytes for message in row] for row in outgoing]
        return super().all_to_all(outgoing, incoming_bytes, purpose)


class Counting(Engine):
    """Counts from the ledger alone what an iteration must send."""

    asked = collectives = moved = pages_asked = 0  # of decode rows: (row, layer, remote rank); exchanges; pages
    pairs: set

    def _forward(self):
        s, self.pairs = self.ledger, getattr(self, "pairs", set())
        busy = set()
        for segment in self._segments():
            listed = s.page_block[0, segment.slot]
            listed = listed[: int(s.slot_pages[0, segment.slot])]
            live = s.page_live[0, segment.slot, :, : len(listed)].T == 1
            for layer in range(s.layers):
                ranks = s.block_rank[0, listed, layer][live[:, layer]]
                remote = set(ranks.tolist()) - {segment.owner}
                busy |= {layer} if remote else set()
                self.pairs |= {(segment.owner, rank) for rank in remote}
                self.asked += len(remote) if segment.decode else 0
                self.pages_asked += int((ranks != segment.owner).sum()) if segment.decode else 0
        self.collectives += 2 * len(busy)
        return super()._forward()

    def _apply_events(self) -> None:
        count = int(self.ledger.event_count[0])
        moves = self.ledger.events[0, :count, 0] == Event.MOVE
        self.moved += int(moves.sum()) * self.runner.stores[0].page_bytes(0)
        super()._apply_events()


def serve(ranks: int, prompts=(150, 97, 40), dtype=torch.float32, policy=None, **options) -> Counting:
    config = RuntimeConfig(slots=4, blocks=128, max_batch_tokens=64, interval_s=0.1, observe_tokens=4, **options)
    engine = Counting(model(dtype), config, policy, transport=Matrix(ranks))
    list(engine.run(workload(prompts)))
    return engine


@pytest.mark.parametrize("shards", ["expert_home", "page_stripe"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_decode_queries_cost_what_the_formula_says_and_two_collectives_a_layer(ranks, shards) -> None:
    engine = serve(ranks, shard_map=shards)
    sent, calls = engine.transport.sent_bytes, engine.transport.collectives
    assert engine.asked > 30, "hardly anything was asked: the test shows nothing"
    assert sent["decode_query"] == engine.asked * geometry_of_model(model()).query_bytes(4)
    assert calls["decode_query"] == engine.collectives and calls["prefill_query"] == calls["observation"] == 0
    assert sent["observation"] > 0
    assert sent["prefill_query"] == 0  # nothing is shared: all that a prompt reads lies with its owner
    assert sent["page_move"] == engine.moved > 0


def test_numbers_travel_in_the_models_own_type() -> None:
    engine = serve(2, dtype=torch.bfloat16, shard_map="page_stripe")
    geometry = geometry_of_model(model(torch.bfloat16))
    assert geometry.query_bytes(2) < 0.6 * geometry.query_bytes(4)
    assert engine.transport.sent_bytes["decode_query"] == engine.asked * geometry.query_bytes(2)


def test_a_read_set_costs_a_bit_a_page() -> None:
    policy = "static:fan_out=0.3/lru"
    engine = serve(4, policy=policy, shard_map="page_stripe", read="sparse", router="centroid")
    formula = engine.asked * geometry_of_model(model()).query_bytes(4)
    sent = engine.transport.sent_bytes["decode_query"]
    assert formula < sent <= 1.05 * formula
    assert sent - formula <= engine.pages_asked / 8 + engine.asked  # rounded up to bytes
    whole = serve(4, shard_map="page_stripe", read="sparse", router="centroid")  # fan-out 1: there is nothing to say
    assert whole.transport.sent_bytes["decode_query"] == whole.asked * geometry_of_model(model()).query_bytes(4)


def test_ranks_without_pages_and_requests_send_nothing() -> None:
    engine = serve(4, prompts=(150,), shard_map="expert_home")
    talked = {(i, j) for i, j in np.argwhere(engine.transport.between > 0).tolist() if i != j}
    assert talked == engine.pairs | {(rank, owner) for owner, rank in engine.pairs}
    alone = serve(4, prompts=(30, 20, 35))  # nothing leaves the always-on set
    assert alone.asked == alone.collectives == 0
    assert alone.transport.collectives["decode_query"] == alone.transport.sent_bytes["decode_query"] == 0


class Weighed(Engine):
    """Looks at the stores while everybody decodes."""

    worst = 0.0

    def _forward(self):
        result, s = super()._forward(), self.ledger
        segments = self._segments()
        if all(segment.decode for segment in segments) and int(s.cached_count[0]) == 0:
            held = [sum(by_codec.values()) for by_codec in self.runner.nbytes().values()]
            page = self.runner.stores[0].page_bytes(0) * s.layers
            always_on = [0] * len(held)
            for segment in segments:
                always_on[segment.owner] += (self.config.sink_pages + self.config.window_pages + 1) * page
            allowed = sum(held) / len(held) + max(always_on) + 0.05 * sum(held)
            self.worst = max(self.worst, max(held) / allowed)
            self.largest = max(held) / sum(held)
        return result


@pytest.mark.parametrize("shards", ["page_stripe", "load_aware"])
def test_four_ranks_hold_a_quarter_each(shards) -> None:
    config = RuntimeConfig(slots=4, blocks=256, max_batch_tokens=512, interval_s=0.1, shard_map=shards)
    engine = Weighed(model(), config, ranks=4)
    list(engine.run(workload((600, 330), output=20)))
    assert 0.5 < engine.worst <= 1.0
    assert engine.largest < 0.4
