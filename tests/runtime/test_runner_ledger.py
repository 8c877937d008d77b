"""The runner under the real ledger: at every iteration tensors hold the bytes that the ledger counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import random_ids, stock, tiny_model

from pikv_kernels import page_bytes
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import GlobalControl, GroupControl
from pikv_runtime.ledger.commit import commit, tag_page
from pikv_runtime.ledger.control import apply_control
from pikv_runtime.ledger.observe import due, observe, read_masks
from pikv_runtime.ledger.schedule import plan
from pikv_runtime.ledger.setup import Shape, build, load_requests
from pikv_runtime.ledger.state import CODECS, Tally
from pikv_runtime.models.runner import CacheView, ModelRunner, Segment, geometry_of_model
from pikv_runtime.requests import BATCH, INTERACTIVE, Request, chain_hashes
from pikv_runtime.transport import LocalTransport

LAYERS, EXPERTS, PAGE_TOKENS, OUTPUT = 4, 8, 16, 40
SIZES = tuple(page_bytes(codec, 2, PAGE_TOKENS, 32, torch.float32) for codec in CODECS)


def make_requests(count: int) -> list[Request]:
    """Requests of unequal lengths, two in three with a common prefix of 64 tokens."""
    requests = []
    for q in range(count):
        prompt = random_ids(q, 50 + 17 * q)
        if q % 3:
            prompt[:64] = random_ids(1000, 64)[: len(prompt)]
        ids = chain_hashes(np.concatenate([prompt, random_ids(2000 + q, OUTPUT)]), PAGE_TOKENS)
        requests.append(Request(q, 0.2 * q, len(prompt), OUTPUT, ids, q % 2, prompt_ids=prompt))
    return requests


class Serving:
    """The engine's loop in a few lines: plan, forward, observe, commit, control."""

    def __init__(self, config: RuntimeConfig, ranks: int, control=None) -> None:
        self.requests = make_requests(6)
        shape = geometry_of_model(tiny_model()).shape(PAGE_TOKENS)
        assert shape == Shape(LAYERS, EXPERTS, SIZES, 2 * 2 * 32)
        self.ledger = build(config, shape, (INTERACTIVE, BATCH), requests=6, pages=16, ranks=ranks, events=True)
        load_requests(self.ledger, 0, self.requests, audit_seed=0, audit_share=config.audit_share)
        self.runner = ModelRunner(tiny_model(), config, LocalTransport(ranks), blocks=self.ledger.block_codec.shape[1])
        self.partial_reads = 0
        self.control, self.outputs = control, {q: [] for q in range(6)}

    def run(self) -> None:
        step = 0
        while self.ledger.unfinished[0] > 0:
            slots = self.iterate()
            step += 1
            assert step < 800
            if self.control is not None and step % 10 == 0:
                self.control(self.ledger)
                apply_control(self.ledger, 0)
                self.apply_events()
            self.drop_finished(slots)
            self.check_bytes()

    def iterate(self) -> dict[int, int]:
        s = self.ledger
        if plan(s, 0) == 0:
            s.clock_s[0] += 0.05
            return {}
        self.apply_events()
        segments = [self.segment(r) for r in range(s.slot_request.shape[1]) if s.slot_plan[0, r] > 0]
        result = self.runner.forward(segments, CacheView.of(s))
        slots = {segment.slot: int(s.slot_request[0, segment.slot]) for segment in segments}
        for seen in result.observations:
            if not s.req_audited[0, slots[seen.slot]]:
                self.check_read(seen)
            observe(s, 0, seen.slot, seen.mass, seen.score)
        for f in result.filled:
            tag_page(s, 0, s.page_block[0, f.slot, f.page], f.tags, f.errors)
        for segment in segments:
            if segment.end >= s.slot_target[0, segment.slot]:
                self.outputs[slots[segment.slot]].append(result.next_tokens[segment.slot])
        commit(s, 0, 0.05)
        self.apply_events()
        return slots

    def check_read(self, seen) -> None:
        """What got attention is what the ledger believes to have been read."""
        live = self.ledger.page_live[0, seen.slot]
        for layer in range(LAYERS):
            read, _ = read_masks(self.ledger, 0, seen.slot, layer, seen.score[layer])
            assert np.array_equal(seen.mass[layer] > 0, read == 1)
            self.partial_reads += int(read.sum() < live[layer].sum())

    def segment(self, r: int) -> Segment:
        s = self.ledger
        q, start, count = int(s.slot_request[0, r]), int(s.slot_tokens[0, r]), int(s.slot_plan[0, r])
        ids = np.concatenate([self.requests[q].prompt_ids, np.array(self.outputs[q], np.int32)])
        return Segment(
            r,
            int(s.slot_owner[0, r]),
            start,
            ids[start : start + count].astype(np.int32),
            decode=start >= s.slot_target[0, r],
            observe=due(s, 0, r) >= 0,
            audited=bool(s.req_audited[0, q]),
        )

    def apply_events(self) -> None:
        s = self.ledger
        events = s.events[0, : s.event_count[0]].copy()
        s.event_count[0] = 0
        self.runner.apply_events(events)

    def drop_finished(self, slots: dict[int, int]) -> None:
        for slot, request in slots.items():
            if self.ledger.slot_request[0, slot] != request:
                self.runner.drop_shadow(slot)

    def check_bytes(self) -> None:
        s = self.ledger
        self.runner.directory.open(s.block_codec[0], s.block_rank[0])
        for rank, store in self.runner.stores.items():
            ghosts = sum(
                int(s.page_ghost[0, r].sum()) * int(s.ghost_bytes)
                for r in range(s.slot_request.shape[1])
                if s.slot_owner[0, r] == rank
            )
            extra = int(s.codec_bytes[0]) - SIZES[0]
            pages = int(((s.block_codec[0] >= 0) & (s.block_rank[0] == rank)).sum())
            assert sum(store.nbytes().values()) == s.bytes_rank[0, rank] - ghosts - pages * extra


@pytest.mark.parametrize("ranks", [1, 2])
def test_exact_serving_gives_the_stock_models_tokens(ranks):
    serving = Serving(RuntimeConfig(blocks=64, observe_tokens=8, audit_share=0.5), ranks)
    serving.run()
    assert serving.ledger.tally[0, Tally.HIT_TOKENS] > 0
    for q, request in enumerate(serving.requests):
        logits = stock(np.concatenate([request.prompt_ids, serving.outputs[q]]).astype(np.int32)).logits[0]
        expected = logits[len(request.prompt_ids) - 1 : -1]
        assert len(serving.outputs[q]) == OUTPUT
        assert expected.argmax(-1).tolist() == serving.outputs[q]
    assert serving.runner.shadows.nbytes == 0


def _press(ledger) -> None:
    ledger.control_groups[0, :, GroupControl.COMPRESSION_RATIO] = 3.0
    ledger.control_groups[0, :, GroupControl.EVICT_FRACTION] = 0.1
    ledger.control_groups[0, :, GroupControl.ROUTING_BIAS] = 0.2
    ledger.control_globals[0, GlobalControl.FAN_OUT] = 0.4
    ledger.control_globals[0, GlobalControl.CACHED_SHARE] = 0.5


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("router", ["centroid", "gate"])
def test_bytes_agree_under_pressure(ranks, router):
    config = RuntimeConfig(
        blocks=64,
        read="sparse",
        router=router,
        codec="bf16",
        cap_bytes=60 * LAYERS * SIZES[0] // ranks,
        observe_tokens=4,
        audit_share=0.5,
    )
    serving = Serving(config, ranks, _press)
    serving.run()
    tally = serving.ledger.tally[0]
    assert tally[Tally.EVICTED_PAGES] > 0 and tally[Tally.ENCODED_PAGES] > 0
    assert serving.partial_reads > 0
    assert all(len(tokens) == OUTPUT for tokens in serving.outputs.values())
