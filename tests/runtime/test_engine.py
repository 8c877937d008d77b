"""The engine with the embedded model: exact serving gives the stock cache's tokens, within a hard cap."""

from __future__ import annotations

import functools
import shutil
import time

import numpy as np
import pytest
import torch

import pikv_runtime
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, GlobalControl
from pikv_runtime.engine import Engine
from pikv_runtime.ledger import Tally
from pikv_runtime.models import load_model
from pikv_runtime.models.segments import CacheView
from pikv_runtime.policy import BundleError, PolicyNetwork, load_policy, save_bundle
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.requests import Request, RequestList, chain_hashes

PAGE, OUTPUT = 16, 20
SHARED = "The code of the red door is 4417; the code of the blue door is 9031; the bus leaves at noon. "  # 6 pages
QUESTIONS = (
    "Which door has the code 4417?",
    "When does the bus leave, and who says so? Answer in one line.",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):",
    "x=1;y=2;z=3;x=1;y=",
    "The code of the red door is",
)


@functools.cache
def embedded():
    torch.set_num_threads(1)
    return load_model("embedded")


@functools.cache
def workload(output: int = OUTPUT) -> RequestList:
    gap_s, requests = 0.05, []
    for q, question in enumerate(QUESTIONS):
        ids = np.array(embedded()[1].encode(SHARED + question), np.int32)
        hashes = np.zeros((len(ids) + output) // PAGE, np.int64)  # zero: unknown yet, not shared
        prompt = chain_hashes(ids, PAGE)
        hashes[: len(prompt)] = prompt
        requests.append(Request(q, gap_s * q, len(ids), output, hashes, q % 2, prompt_ids=ids))
    return RequestList("questions", gap_s * len(requests), tuple(requests))


@functools.cache
def stock_tokens(output: int = OUTPUT) -> dict[int, list[int]]:
    """What transformers' own `generate` says, one prompt at a time."""
    model, tokens = embedded()[0], {}
    for request in workload().requests:
        ids = torch.from_numpy(request.prompt_ids).long()[None]
        options = {"max_new_tokens": output, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        tokens[request.request_id] = made[0, ids.shape[1] :].tolist()
    return tokens


def page_bytes() -> int:
    """Bytes of one native page over all layers."""
    from pikv_runtime.models.runner import geometry_of_model

    shape = geometry_of_model(embedded()[0]).shape(PAGE)
    return shape.layers * shape.codec_bytes[0]


class Watched(Engine):
    """Compares tensors with the ledger before every forward pass."""

    most_bytes = 0

    def _forward(self):
        s = self.ledger
        self.runner.directory.open(s.block_codec[0], s.block_rank[0])
        for rank, codecs in self.runner.nbytes().items():
            here = (s.block_codec[0] >= 0) & (s.block_rank[0] == rank)
            # The ledger counts a page's centroid with the page where reading is sparse; ghosts are centroids.
            centroid = int(s.ghost_bytes) if s.sparse else 0
            owned = s.slot_owner[0] == rank
            ghosts = int(s.page_ghost[0, owned].sum()) * int(s.ghost_bytes)
            stored = sum(codecs.values())
            assert stored + centroid * int(here.sum()) + ghosts == s.bytes_rank[0, rank]
            assert s.bytes_rank[0, rank] <= s.cap_bytes[0]
            self.most_bytes = max(self.most_bytes, stored)
        return super()._forward()


class Loud(Engine):
    """Keeps the logits and the first expert of every token."""

    def load(self, *args, **kwargs):
        super().load(*args, **kwargs)
        self.said = {}

    def _forward(self):
        segments = self._segments()
        logits, result = self.runner.logits(segments, CacheView.of(self.ledger))
        experts = self.runner.gates.choices()
        first = 0
        for segment in sorted(segments, key=lambda s: (s.owner, not s.decode)):  # packed order
            q = int(self.ledger.slot_request[0, segment.slot])
            for k in range(len(segment.token_ids)):
                self.said[q, segment.start + k] = logits[first + k], experts[:, first + k]
            first += len(segment.token_ids)
        return result


@pytest.mark.parametrize("ranks", [1, 2])
def test_logits_and_experts_of_the_embedded_model_are_the_stock_cache_s(ranks: int) -> None:
    engine = Loud(embedded()[0], RuntimeConfig(slots=4, max_batch_tokens=48, blocks=128), ranks=ranks)
    list(engine.run(workload()))
    for request in workload().requests:
        ids = np.concatenate([request.prompt_ids, stock_tokens()[request.request_id]])
        with torch.no_grad():
            stock = embedded()[0](torch.from_numpy(ids).long()[None], output_router_logits=True)
        computed = [at for q, at in engine.said if q == request.request_id]
        assert max(computed) == len(ids) - 2 and len(computed) >= OUTPUT
        for at in computed:
            logits, experts = engine.said[request.request_id, at]
            assert (logits - stock.logits[0, at]).abs().max() <= 1e-4
            for layer, gate in enumerate(stock.router_logits):
                top = gate[at].softmax(-1).topk(2)
                assert top.values[0] - top.values[1] < 1e-5 or experts[layer] == top.indices[0]


def run(config: RuntimeConfig, policy=None, ranks: int = 1, output: int = OUTPUT, **options):
    engine = Watched(embedded()[0], config, policy, ranks, **options)
    served = {done.request.request_id: done for done in engine.run(workload(output))}
    return engine, served


def tokens_of(served) -> dict[int, list[int]]:
    return {q: done.output_ids.tolist() for q, done in served.items()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_exact_serving_is_the_stock_cache(ranks: int) -> None:
    # 48 tokens an iteration: prompts of over 100 are chunked, and decode steps share iterations with prompts.
    engine, served = run(RuntimeConfig(slots=4, max_batch_tokens=48, blocks=128), ranks=ranks)
    assert tokens_of(served) == stock_tokens()
    assert sum(done.hit_tokens for done in served.values()) > 0
    assert served[4].hit_tokens == len(SHARED) // PAGE * PAGE
    assert all(done.ttft_s > 0 and done.tpot_s > 0 and done.preempted == 0 for done in served.values())
    wire = engine.transport.sent_bytes
    assert (wire["decode_query"] > 0) == (wire["page_move"] > 0) == (ranks > 1)


def test_bf16_pages_weigh_less_and_serve_as_many() -> None:
    exact, _ = run(RuntimeConfig(slots=4, blocks=128))
    half, served = run(RuntimeConfig(slots=4, blocks=128, codec="bf16"))
    assert len(served) == len(QUESTIONS) and half.most_bytes < exact.most_bytes


@pytest.mark.parametrize(("ranks", "pages"), [(1, 18), (2, 14)])
def test_preempted_requests_finish_with_the_same_tokens(ranks: int, pages: int) -> None:
    cap = pages * page_bytes()  # of each rank; the longest request alone needs 14
    config = RuntimeConfig(slots=8, blocks=128, cap_bytes=cap)
    engine, served = run(config, ranks=ranks, output=64)
    assert engine.ledger.tally[0, Tally.PREEMPTIONS] > 0
    assert any(done.preempted for done in served.values())
    assert tokens_of(served) == stock_tokens(64)
    assert 0 < engine.most_bytes <= cap


class Hosted(Watched, Loud):
    """Compares what lies in host memory with the ledger, too."""

    def _forward(self):
        s = self.ledger
        for rank, codecs in self.runner.host_nbytes().items():
            assert sum(codecs.values()) == s.host_bytes[0, rank]
        return super()._forward()


@pytest.mark.parametrize("ranks", [1, 2])
def test_logits_are_exact_over_blocks_that_went_to_the_host_and_back(ranks: int) -> None:
    order = (1, 2, 1, 2, 1)  # each as long as the cap allows: the other one's blocks have to go
    prompts = [embedded()[1].encode(f"{q}. {SHARED}{QUESTIONS[q]}") for q in order]
    requests = []
    for number, prompt in enumerate(prompts):
        ids = np.array(prompt, np.int32)
        hashes = np.zeros((len(ids) + 4) // PAGE + 1, np.int64)
        hashes[: len(ids) // PAGE] = chain_hashes(ids, PAGE)[: len(ids) // PAGE]
        requests.append(Request(number, 2.0 * number, len(ids), 4, hashes, 0, prompt_ids=ids))
    pages = max(len(p) for p in prompts) // PAGE + 1
    config = RuntimeConfig(slots=2, blocks=128, cap_bytes=(pages + 1) * page_bytes(), host_bytes=100 * page_bytes())
    engine = Hosted(embedded()[0], config, ranks=ranks)
    served = {done.request.request_id: done for done in engine.run(RequestList("turns", 10.0, tuple(requests)))}
    tally = engine.ledger.tally[0]
    if ranks == 1:
        assert tally[Tally.HOST_HIT_TOKENS] >= 2 * (pages - 2) * PAGE and served[4].hit_tokens >= (pages - 2) * PAGE
    assert tally[Tally.HOST_IN_BLOCKS] > 0 and engine.costs().host_bytes_mean > 0
    for number, request in enumerate(requests):
        ids = np.concatenate([request.prompt_ids, served[number].output_ids])
        with torch.no_grad():
            stock = embedded()[0](torch.from_numpy(ids).long()[None]).logits[0]
        computed = [at for q, at in engine.said if q == number]
        assert max(computed) == len(ids) - 2
        for at in computed:
            assert (engine.said[number, at][0] - stock[at]).abs().max() <= 1e-4


@pytest.mark.parametrize("policy", ["static:ratio=3,evict=0.3,fan_out=0.3/h2o", "random", "lazy/lru"])
def test_a_lossy_policy_stays_within_the_cap_and_serves_everybody(policy: str) -> None:
    config = RuntimeConfig(
        slots=8, blocks=128, codec="bf16", read="sparse", router="centroid", interval_s=0.1, observe_tokens=4,
        cap_bytes=24 * page_bytes(),
    )  # fmt: skip
    engine, served = run(config, policy, ranks=2)
    assert all(len(done.output_ids) == OUTPUT for done in served.values()) and len(served) == len(QUESTIONS)
    assert engine.ledger.tally[0, Tally.ENCODED_PAGES] > 0
    assert 0 < engine.score().J < 100 and len(engine.control_log) == engine.timers.decisions


def test_a_request_that_cannot_fit_is_refused_and_the_others_served() -> None:
    shortest = min(workload().requests, key=lambda r: r.prompt_tokens)
    longest = max(workload().requests, key=lambda r: r.prompt_tokens)
    cap = (longest.prompt_tokens + OUTPUT - 1) // PAGE * page_bytes()  # a page short of the longest
    assert (shortest.prompt_tokens + OUTPUT) // PAGE * page_bytes() < cap
    engine, served = run(RuntimeConfig(slots=4, blocks=128, cap_bytes=cap))
    assert [r.request_id for r in engine.refused()] == [longest.request_id]
    assert set(served) == {r.request_id for r in workload().requests} - {longest.request_id}
    assert all(tokens == stock_tokens()[q] for q, tokens in tokens_of(served).items())


def test_the_wall_clock_measures() -> None:
    engine, served = run(RuntimeConfig(slots=4, blocks=128), clock="wall")
    assert tokens_of(served) == stock_tokens()
    assert all(done.ttft_s > 0 and done.tpot_s > 0 for done in served.values())
    timers = engine.timers
    assert min(timers.forward_s, timers.tensors_s, timers.ledger_s, timers.decision_s) > 0 and timers.decisions > 0
    assert timers.forward_s < engine.ledger.clock_s[0]


def test_a_slow_policy_costs_latency_on_the_wall_clock() -> None:
    def slow(telemetry):
        time.sleep(0.2)
        return Control.neutral(len(telemetry.groups))

    engine, served = run(RuntimeConfig(slots=4, blocks=128), slow, clock="wall")
    assert engine.ledger.clock_s[0] >= engine.timers.decision_s >= 0.2 * engine.timers.decisions
    assert served[0].ttft_s >= 0.2


def test_a_limit_ends_the_run_and_charges_the_unserved() -> None:
    engine = Engine(embedded()[0], RuntimeConfig(slots=4, blocks=128, interval_s=0.05))
    served = list(engine.run(workload(), limit_s=0.2))
    assert len(served) < len(QUESTIONS) and engine.score().J > 0
    assert engine.ledger.clock_s[0] >= 0.2


def test_the_same_run_twice_is_the_same() -> None:
    config = RuntimeConfig(slots=4, blocks=128, codec="bf16", read="sparse", router="gate", interval_s=0.1)
    runs = [run(config, "random", ranks=2) for _ in range(2)]
    assert runs[0][0].control_log == runs[1][0].control_log
    assert tokens_of(runs[0][1]) == tokens_of(runs[1][1])
    np.testing.assert_array_equal(*(engine.ledger.tally for engine, _ in runs))


def test_a_function_and_an_object_are_policies_too() -> None:
    told = []

    def keep(telemetry):
        told.append(telemetry.globals.copy())
        return Control.neutral(len(telemetry.groups))

    engine, served = run(RuntimeConfig(slots=4, blocks=128), keep)
    assert tokens_of(served) == stock_tokens() and len(told) == engine.timers.decisions
    _, again = run(RuntimeConfig(slots=4, blocks=128), load_policy("capped_exact/lru"))
    assert tokens_of(again) == tokens_of(served)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("lazzy/h2o", "unknown policy 'lazzy': did you mean 'lazy'"),
        ("lazi/h20", "unknown policy 'lazi': did you mean 'lazy'"),
        ("lazy/h20", "unknown ranker 'h20': did you mean 'h2o'"),
        ("static:ration=2", "did you mean 'ratio'"),
    ],
)
def test_an_unknown_policy_is_one_line_that_names_the_closest(policy: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message) as raised:
        Engine(embedded()[0], RuntimeConfig(), policy)
    assert "\n" not in str(raised.value)


def test_other_bad_arguments_name_what_is_allowed() -> None:
    for options, message in (({"clock": "sun"}, "clock='sun'"), ({"ranks": 0}, "ranks=0"), ({"profile": "gpu"}, "gpu")):
        with pytest.raises(ValueError, match=message):
            Engine(embedded()[0], RuntimeConfig(), **options)
    with pytest.raises(TypeError, match="policy=3"):
        Engine(embedded()[0], RuntimeConfig(), 3)
    blind = RequestList("blind", 1.0, (Request(0, 0.0, 20, 4, np.zeros(1, np.int64)),))
    with pytest.raises(ValueError, match="prompt_ids in every request"):
        Engine(embedded()[0], RuntimeConfig()).load(blind)


def test_sparse_reading_needs_a_router_that_ranks() -> None:
    with pytest.raises(ValueError, match=r"read='sparse' with router='all'.*'gate', 'centroid'"):
        RuntimeConfig(read="sparse")
    with pytest.raises(UnknownNameError, match="did you mean 'centroid'"):
        RuntimeConfig(read="sparse", router="centroids")


@pytest.fixture
def bundle(tmp_path):
    fields = {"name": "tiny", "version": "0.1", "interval_s": 2.0, "objective_version": "1"}
    provenance = {"commit": "0" * 40, "command": "test", "seeds": [0], "families": ["facts"]}
    folder = tmp_path / "tiny-0.1"
    network = PolicyNetwork.random((8, 8))
    save_bundle(folder, network, **fields, provenance=provenance, evaluation={"J": 1.0}, card="# tiny\n")
    return folder


def test_a_bundle_decides_behind_its_guard(bundle) -> None:
    config = RuntimeConfig(slots=4, blocks=128, codec="bf16", read="sparse", router="centroid", interval_s=0.1)
    engine, served = run(config, bundle)  # a path object
    assert len(served) == len(QUESTIONS)
    assert engine.policy.counters["decisions"] == engine.timers.decisions
    same, again = run(config, str(bundle))
    assert same.control_log == engine.control_log and tokens_of(again) == tokens_of(served)


def test_a_tampered_bundle_is_refused_and_serving_goes_on(bundle, caplog) -> None:
    weights = bundle / "policy.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"policy\.safetensors") as raised:
        Engine(embedded()[0], RuntimeConfig(), str(bundle))
    assert "\n" not in str(raised.value)
    policy = load_policy(bundle, strict=False)
    assert "refused, lazy/h2o decides" in caplog.text
    _, served = run(RuntimeConfig(slots=4, blocks=128), policy)
    assert tokens_of(served) == stock_tokens()
    shutil.rmtree(bundle)
    with pytest.raises(BundleError):
        load_policy(bundle)


def test_the_names_outsiders_rely_on() -> None:
    assert pikv_runtime.Engine is Engine and pikv_runtime.load_policy is load_policy
    with pytest.raises(ValueError, match="no model at 'nowhere'"):
        pikv_runtime.load_model("nowhere")


def test_without_a_policy_the_configured_window_is_in_force() -> None:
    engine = Engine(embedded()[0], RuntimeConfig(window_pages=5, audit_share=1.0))
    list(engine.run(workload()))
    assert engine.ledger.control_globals[0, GlobalControl.WINDOW] == 5
    longest = max(r.prompt_tokens + r.output_tokens for r in workload().requests)
    layers, heads, width = 4, 2, 32
    assert engine.costs().audit_bytes >= (longest - 1) * layers * heads * width * 4
