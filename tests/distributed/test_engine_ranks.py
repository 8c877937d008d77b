"""The engine over two real processes: one decision, one ledger, the tokens that virtual ranks give."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

from pikv_env.config import EnvConfig
from pikv_env.live import run_live
from pikv_env.pool import WorkloadPool
from pikv_env.traces import synthetic_library
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control
from pikv_runtime.engine import Engine
from pikv_runtime.models import load_model
from pikv_runtime.requests import Request, RequestList, chain_hashes
from pikv_runtime.transport import LocalTransport, TorchDistTransport, run_ranks

pytestmark = pytest.mark.distributed

PAGE, OUTPUT, RANKS = 16, 12, 2
SHARED = "The code of the red door is 4417; the code of the blue door is 9031. "  # 4 pages
QUESTIONS = (
    "The code of the blue door is",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n",
    "When does the bus leave, and who says so?",
    "ada=713;ben=208;cleo=955;ada=713;ben=",
    "Monday, Tuesday, Wednesday, ",
)
LOSSY = RuntimeConfig(
    slots=4, blocks=128, codec="bf16", read="sparse", router="centroid", interval_s=0.1, observe_tokens=4,
    max_batch_tokens=64, audit_share=0.5, cap_bytes=40 * 4 * 8192,
)  # fmt: skip
EXACT = RuntimeConfig(slots=4, blocks=128, interval_s=0.1, max_batch_tokens=64)


@functools.cache
def model():
    torch.set_num_threads(1)
    return load_model("embedded")[0]


@functools.cache
def workload() -> RequestList:
    requests = []
    for q, question in enumerate(QUESTIONS):
        ids = np.frombuffer((SHARED + question).encode(), np.uint8).astype(np.int32)  # the model reads bytes
        hashes = np.zeros((len(ids) + OUTPUT) // PAGE, np.int64)
        prompt = chain_hashes(ids, PAGE)
        hashes[: len(prompt)] = prompt
        requests.append(Request(q, 0.03 * q, len(ids), OUTPUT, hashes, q % 2, prompt_ids=ids))
    return RequestList("mixed", 0.2, tuple(requests))


class Headstrong(Engine):
    """An engine that lets its own policy decide on every rank: only the broadcast keeps ranks together."""

    def decide(self) -> Control:
        control = self.control_loop.control
        self.policy.decide(self.telemetry(), control)
        self.enforce(control)
        return control


def serve(transport, config, policy, clock="model", kind=Engine) -> dict[str, np.ndarray]:
    engine = kind(model(), config, policy, transport=transport, clock=clock)
    served = sorted(engine.run(workload()), key=lambda done: done.request.request_id)
    s = engine.ledger
    return {
        "tokens": np.stack([done.output_ids for done in served]),
        "controls": np.frombuffer(b"".join(engine.control_log), np.float32),
        "tally": s.tally[0].copy(),
        "clock": s.clock_s.copy(),
        "hits": s.req_hit_tokens[0].copy(),
        "codecs": s.block_codec[0].copy(),
        "wire": np.array(sorted(transport.sent_bytes.items()), dtype="U20")[:, 1].astype(np.int64),
        "stored": np.array([sum(b.values()) for b in engine.runner.nbytes().values()]),
    }


def serve_process(rank: int, world: int, config, policies, clock="model", kind=Engine):
    return serve(TorchDistTransport(timeout_s=100), config, policies[rank], clock, kind)


def in_processes(*args, world=RANKS):
    model()  # once, before the fork
    return run_ranks(serve_process, world, *args, timeout_s=200)


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], exactly: bool = True) -> None:
    """Losses are sums over attention mass, which rounds by the rows that share a matrix product."""
    for name in ("tokens", "controls", "clock", "hits", "codecs"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    np.testing.assert_allclose(one["tally"], other["tally"], rtol=0 if exactly else 1e-4, atol=0 if exactly else 1e-6)


@pytest.mark.parametrize(
    ("config", "policy"), [(EXACT, "capped_exact/lru"), (LOSSY, "static:ratio=3,evict=0.2,fan_out=0.5/h2o")]
)
def test_two_processes_serve_as_two_virtual_ranks_do(config, policy) -> None:
    first, second = in_processes(config, (policy, policy))
    virtual = serve(LocalTransport(RANKS), config, policy)
    assert_same(first, second)
    assert_same(first, virtual, exactly=False)
    np.testing.assert_array_equal(first["wire"] + second["wire"], virtual["wire"])
    assert (first["wire"] > 0).sum() >= 3 and len(first["controls"]) > 0
    np.testing.assert_array_equal(np.concatenate([first["stored"], second["stored"]]), virtual["stored"])
    assert first["hits"].sum() > 0 and len(np.unique(first["tokens"])) > 10


def test_rank_zero_overrules_a_rank_that_would_decide_otherwise() -> None:
    policies = ("static:ratio=2/lru", "static:ratio=4,evict=0.4,fan_out=0.1/h2o")
    first, second = in_processes(LOSSY, policies, "model", Headstrong)
    assert_same(first, second)
    assert_same(first, serve(LocalTransport(RANKS), LOSSY, policies[0]), exactly=False)
    alone = serve(LocalTransport(RANKS), LOSSY, policies[1])
    assert not np.array_equal(alone["controls"], first["controls"])  # it did want something else


def test_four_ranks_obey_the_one_that_decides() -> None:
    config = dataclasses.replace(LOSSY, shard_map="load_aware", cap_bytes=None)
    own = tuple(f"static:ratio={1.5 + rank / 2},evict=0.2,fan_out=0.5/h2o" for rank in range(4))
    first, *others = in_processes(config, own, "model", Headstrong, world=4)
    for other in others:
        assert_same(first, other)
    assert_same(first, serve(LocalTransport(4), config, own[0]), exactly=False)
    assert len(np.unique(first["controls"])) > 3


def test_on_the_wall_clock_both_ranks_keep_rank_zeros_time() -> None:
    first, second = in_processes(LOSSY, ("lazy/h2o",) * RANKS, "wall")
    assert_same(first, second)
    assert first["clock"][0] > 0


def test_a_rank_that_fails_is_named() -> None:
    with pytest.raises(RuntimeError, match="rank 1 of 2 failed"):
        in_processes(EXACT, ("capped_exact/lru", "no-such-policy"))


@functools.cache
def pool() -> WorkloadPool:
    library = synthetic_library(
        0, ("facts",), contents_per_family=4, observe_tokens=4, prompt_range=(70, 90), output_range=(6, 10)
    )
    runtime = RuntimeConfig(
        slots=4, blocks=256, codec="bf16", read="sparse", router="centroid", interval_s=0.25, observe_tokens=4
    )
    config = EnvConfig(
        families=("facts-poisson",), ranks=RANKS, horizon_s=1.5, workloads=1, load=(0.15, 0.15), runtime=runtime
    )
    return WorkloadPool(library, config, 0)


def test_a_live_run_measures_the_same_episode_in_processes_and_without() -> None:
    options = {"pressure": 2.0, "lambdas": (0.25, 10.0), "model": model()}
    real = run_live(pool(), "lazy/h2o", clock="model", timeout_s=200, **options)
    virtual = run_live(pool(), "lazy/h2o", clock="model", processes=False, **options)
    assert real.controls_identical_on_ranks and real.ranks == RANKS
    assert (real.intervals, real.wire_bytes) == (virtual.intervals, virtual.wire_bytes)
    for name in ("J", "latency", "memory", "loss", "hit_rate"):
        assert getattr(real, name) == pytest.approx(getattr(virtual, name), rel=1e-4, abs=1e-6), name
    assert real.wire_bytes["control"] > 0 and real.wire_bytes["decode_query"] > 0
    assert real.tokens_per_second > 0 and 0 < real.decision_share < 1 and real.fidelity == 1 - real.loss
