"""Level A: fed the same signals on the model clock, the live engine and the simulator are one and the same."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from pikv_env.config import EnvConfig
from pikv_env.parity import Lockstep, level_a
from pikv_env.pool import WorkloadPool
from pikv_env.traces import synthetic_library
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.ledger import Tally, check_integrity
from pikv_runtime.models import load_model

POLICIES = (
    "lazy/h2o",
    "pressure_proportional/streaming_llm",
    "static:ratio=3,evict=0.5,fan_out=0.25/lru",
    "random",
)
BLOCK_RULES = ("arc", "s3fifo", "tlru:threshold=0.01")
PRESSURE = 4.0


@functools.cache
def model():
    return load_model("embedded")[0]


@functools.cache
def pool(ranks: int, horizon_s: float = 2.0, slots: int = 6, latency_s: float = 0.0, host: float = 0.0) -> WorkloadPool:
    library = synthetic_library(
        0, ("facts", "dialogue"), contents_per_family=4, observe_tokens=4, prompt_range=(100, 200), output_range=(6, 20)
    )
    runtime = RuntimeConfig(
        codec="bf16",
        read="sparse",
        router="centroid",
        slots=slots,
        blocks=256,
        observe_tokens=4,
        interval_s=0.25,
        audit_share=0.5,
        control_latency_s=latency_s,
    )
    config = EnvConfig(
        families=("facts-poisson",), ranks=ranks, horizon_s=horizon_s, workloads=2, load=(0.2, 0.2), runtime=runtime,
        host=host,
    )  # fmt: skip
    return WorkloadPool(library, config, 0)


def lockstep(ranks: int = 1, policy: str = POLICIES[2]) -> Lockstep:
    return Lockstep(pool(ranks), policy, pressure=PRESSURE, model=model())


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("policy", POLICIES)
def test_identical_at_every_iteration(policy: str, ranks: int) -> None:
    pair = lockstep(ranks, policy)
    assert pair.run() is None
    assert pair.iterations > 20
    served = pair.engine
    assert served.ledger.unfinished[0] == 0
    served.close()
    # The tensors followed: what they weigh is what the ledger counts, centroids and ghosts aside.
    assert sum(sum(codecs.values()) for codecs in served.runner.nbytes().values()) == page_bytes(served)
    if policy.startswith("static"):
        tally = served.ledger.tally[0]
        assert tally[Tally.EVICTED_PAGES] > 0 and tally[Tally.ENCODED_PAGES] > 0


@pytest.mark.parametrize("policy", POLICIES[:3])
def test_identical_with_late_controls(policy: str) -> None:
    pair = Lockstep(pool(1, latency_s=0.1), policy, pressure=PRESSURE, model=model())
    assert pair.run() is None and pair.iterations > 20


@pytest.mark.parametrize("ranks", [1, 2])
def test_identical_with_a_host_tier(ranks: int) -> None:
    pair = Lockstep(pool(ranks, 6.0, host=2.0), POLICIES[0], pressure=1e6, model=model())
    assert pair.run() is None
    served = pair.engine
    s, tally = served.ledger, served.ledger.tally[0]
    assert tally[Tally.HOST_OUT_BLOCKS] > 0 and tally[Tally.HOST_HIT_TOKENS] > 0
    served.close()
    for rank, codecs in served.runner.host_nbytes().items():
        pages = (s.block_host[0] != 0)[:, None] & (s.block_rank[0] == rank)
        assert sum(codecs.values()) == s.host_bytes[0, rank] - int(pages.sum()) * s.ghost_bytes


@pytest.mark.parametrize("rule, ranks", [(BLOCK_RULES[0], 1), (BLOCK_RULES[1], 2), (BLOCK_RULES[2], 1)])
def test_identical_under_block_rules(rule: str, ranks: int) -> None:
    pair = Lockstep(pool(ranks, 6.0), f"lazy/h2o+{rule}", pressure=1e6, model=model())
    assert pair.run() is None
    tally = pair.engine.ledger.tally[0]
    assert tally[Tally.EVICTED_BLOCKS] > 10 and tally[Tally.HIT_TOKENS] > 0
    for ledger in (pair.engine.ledger, pair.state):
        check_integrity(ledger, 0)
    pair.engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("policy", [*POLICIES, "capped_exact/lru", "static:ratio=2,fan_out=0.5/lfu"])
def test_identical_over_a_longer_episode_at_the_least_cap(policy: str, ranks: int) -> None:
    pair = Lockstep(pool(ranks, 12.0, 16), policy, pressure=1e6, model=model())
    assert pair.run() is None and pair.iterations > 150


def page_bytes(engine) -> int:
    """Bytes of pages that the ledger believes resident."""
    s = engine.ledger
    codecs = s.block_codec[0][s.block_codec[0] >= 0]
    return int((s.codec_bytes[codecs] - s.ghost_bytes).sum())


def test_the_report_covers_every_policy() -> None:
    report = level_a(pool(1), POLICIES[2:], pressure=PRESSURE, model=model(), workload=1)
    assert report["identical"] and report["first_difference"] is None
    assert [row["policy"] for row in report["rows"]] == list(POLICIES[2:])
    assert all(row["iterations"] > 20 and row["first_difference"] is None for row in report["rows"])


def test_a_perturbed_signal_is_reported_where_it_first_shows() -> None:
    pair = lockstep()
    mass = pair.engine.signals.mass.copy()
    mass[:, 0] *= 1.001
    pair.engine.signals = pair.engine.signals._replace(mass=mass)
    found = pair.run()
    iteration, name = found.removeprefix("iteration ").split(": ")
    assert int(iteration) == pair.iterations and name in ("tally", "page_mass")


def test_a_perturbed_tag_is_reported() -> None:
    pair = lockstep(ranks=2)
    pair.engine.signals = pair.engine.signals._replace(tags=(pair.engine.signals.tags + 1) % 8)
    assert pair.run().endswith(("tally", "bytes_rank", "block_rank", "block_tag"))


def test_a_perturbed_control_is_reported_at_its_decision() -> None:
    pair = lockstep()
    exact, calls = pair.policies[1], []

    class Perturbed:
        def decide(self, telemetry, out=None):
            control = exact.decide(telemetry, out)
            calls.append(1)
            if len(calls) == 3:
                control.groups[0, 1] += np.float32(1e-3)
            return control

    pair.policies = (pair.policies[0], Perturbed())
    assert pair.run().endswith(": control") and len(calls) == 3


def test_a_difference_is_the_reports_first(monkeypatch) -> None:
    from pikv_env import parity

    monkeypatch.setattr(parity, "first_difference", lambda a, b: "bytes_rank")
    report = level_a(pool(1), POLICIES[:2], pressure=PRESSURE, model=model())
    assert not report["identical"]
    assert report["first_difference"] == "lazy/h2o: iteration 1: bytes_rank"
