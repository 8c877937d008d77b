"""Where pages lie never changes what is computed: every shard map, copies and rebalancing, live and in a replay."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from pikv_env.log_replay import replay_log
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.engine import Engine
from pikv_runtime.ledger.state import CODECS
from pikv_runtime.models import load_model
from pikv_runtime.requests import Request, RequestList, chain_hashes
from pikv_runtime.serving_log import ServingRecorder
from pikv_runtime.shard_maps import SHARD_MAPS

PAGE, OUTPUT, RANKS = 16, 20, 4
SHARED = "The code of the red door is 4417; the code of the blue door is 9031. " * 2
QUESTIONS = ("The code of the blue door is", "ada=713;ben=208;cleo=955;ada=713;ben=", "Monday, Tuesday, ")
OTHERS = [name for name in SHARD_MAPS if name != "shard_eplb"] + ["shard_eplb:every=1,margin=0,copies=yes"]


@functools.cache
def model():
    torch.set_num_threads(1)
    return load_model("embedded")[0]


@functools.cache
def workload() -> RequestList:
    requests = []
    for q, question in enumerate(QUESTIONS):
        ids = np.frombuffer((SHARED + question).encode(), np.uint8).astype(np.int32)
        hashes = np.zeros((len(ids) + OUTPUT) // PAGE, np.int64)
        prompt = chain_hashes(ids, PAGE)
        hashes[: len(prompt)] = prompt
        requests.append(Request(q, 0.02 * q, len(ids), OUTPUT, hashes, 0, prompt_ids=ids))
    return RequestList("placement", 0.1, tuple(requests))


class Checked(Engine):
    """Compares the stores' tensors with the ledger's bytes before every decision. Where reading is sparse, the ledger
    counts the centroids of pages and of ghosts, too."""

    copied = 0

    def decide(self):
        self._apply_events()
        s, stored = self.ledger, self.runner.nbytes()
        if s.sparse:
            pages = sum(
                held[codec] // self.runner.stores[rank].page_bytes(k)
                for rank, held in stored.items()
                for k, codec in enumerate(CODECS)
            )
            centroids = (pages + int(s.page_ghost[0].sum())) * s.ghost_bytes
            assert sum(sum(held.values()) for held in stored.values()) + centroids == s.bytes_rank[0].sum()
        else:
            assert [sum(held.values()) for held in stored.values()] == s.bytes_rank[0].tolist()
        self.copied = max(self.copied, int(self.ledger.copy_bytes[0].sum()))
        return super().decide()


def serve(policy="capped_exact/lru", recorded=False, **options):
    config = RuntimeConfig(slots=4, blocks=128, max_batch_tokens=64, interval_s=0.05, observe_tokens=2, **options)
    engine = Checked(model(), config, policy, ranks=RANKS)
    engine.load(workload())
    recorder = ServingRecorder(engine, policy) if recorded else None
    engine.measure()
    done = False
    while not done:
        engine.decide()
        done = engine.run_interval()
        engine.measure()
    engine.close()
    return engine, recorder


@functools.cache
def expected() -> list[list[int]]:
    config = RuntimeConfig(slots=4, blocks=128, max_batch_tokens=64, interval_s=0.05, observe_tokens=2)
    engine = Engine(model(), config, "capped_exact/lru")
    list(engine.run(workload()))
    return [list(output) for output in engine.outputs]


@pytest.mark.parametrize("shards", OTHERS)
def test_every_map_gives_the_tokens_of_one_rank(shards) -> None:
    engine, _ = serve(shard_map=shards)
    assert [list(output) for output in engine.outputs] == expected()
    assert engine.transport.sent_bytes["page_move"] > 0


def test_copies_are_stored_for_real_and_read_once() -> None:
    engine, _ = serve(write="copies", copies=3)
    assert [list(output) for output in engine.outputs] == expected()  # mass counted twice would show
    single, _ = serve()
    moved, once = engine.transport.sent_bytes["page_move"], single.transport.sent_bytes["page_move"]
    assert engine.copied > 0 and moved > 1.5 * once
    assert engine.ledger.copy_bytes[0].sum() == 0  # nobody is left to read them


LOSSY = {"codec": "bf16", "read": "sparse", "router": "centroid", "audit_share": 0.5}


@pytest.mark.parametrize("options", [{"write": "copies"}, {"shard_map": "shard_eplb:every=1,margin=0,copies=yes"}])
def test_a_replay_places_and_copies_the_same(options) -> None:
    engine, recorder = serve("static:ratio=2.5,evict=0.1,fan_out=0.5/h2o", recorded=True, **LOSSY, **options)
    found = replay_log(recorder.log())
    assert found.identical, found.first_difference
    assert engine.control_log and ("write" not in options or engine.copied > 0)
