"""A policy in its own process on four ranks: one decides, all obey, and a hang stalls nobody beyond its time-out."""

from __future__ import annotations

import functools
import time

import numpy as np
import pytest
import torch

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import GroupControl
from pikv_runtime.engine import Engine
from pikv_runtime.models import load_model
from pikv_runtime.policy import GuardLimits, load_policy
from pikv_runtime.requests import Request, RequestList
from pikv_runtime.transport import TorchDistTransport, run_ranks

pytestmark = pytest.mark.distributed

RANKS, TIMEOUT_S = 4, 0.3
CONFIG = RuntimeConfig(
    slots=4, blocks=64, codec="bf16", read="sparse", router="centroid", interval_s=0.02, max_batch_tokens=64
)
SOURCE = """
import os, sys, time
from pathlib import Path

class Moody:
    "Decides three times, then hangs."
    def __init__(self):
        Path(__file__).with_suffix(f".{os.getpid()}.started").touch()
        self.decided = 0
    def decide(self, telemetry, out):
        self.decided += 1
        if self.decided > 3:
            time.sleep(600) if MOOD == "hangs" else os._exit(1)
        out.groups[:, 1] = 3.0
        return out
"""


@functools.cache
def model():
    torch.set_num_threads(1)
    return load_model("embedded")[0]


def workload() -> RequestList:
    ids = np.frombuffer(b"The code of the red door is 4417; the code of the blue door is 9031.", np.uint8)
    requests = [
        Request(q, 0.02 * q, len(ids), 10, np.zeros(len(ids) // 16, np.int64), 0, prompt_ids=ids.astype(np.int32))
        for q in range(3)
    ]
    return RequestList("doors", 0.1, tuple(requests))


def serve(rank: int, world: int, source: str) -> dict[str, np.ndarray]:
    limits = GuardLimits(timeout_us=1e6 * TIMEOUT_S, recover_after=1000)
    policy = load_policy(f"python:{source}:Moody", limits=limits, fallback="static:ratio=1.5/lru")
    engine = Engine(model(), CONFIG, policy, transport=TorchDistTransport(timeout_s=100))
    engine.load(workload())
    engine.measure()
    spans, done = [], False
    while not done:
        begin = time.monotonic()
        engine.decide()
        spans.append(time.monotonic() - begin)
        done = engine.run_interval()
        engine.measure()
    engine.close()
    return {
        "controls": np.frombuffer(b"".join(engine.control_log), np.float32).reshape(len(engine.control_log), -1),
        "tokens": np.array(engine.outputs),
        "decided_s": np.array(spans),
        "asked": np.array([engine.policy.counters["decisions"]]),
    }


@pytest.mark.parametrize("mood", ["hangs", pytest.param("dies", marks=pytest.mark.slow)])
def test_a_policy_that_stops_answering_on_rank_zero_stalls_nobody(tmp_path, mood):
    source = tmp_path / "moody.py"
    source.write_text(f"MOOD = {mood!r}\n{SOURCE}")
    model()  # once, before the fork
    ranks = run_ranks(serve, RANKS, str(source), timeout_s=200)
    first = ranks[0]
    groups = CONFIG.layer_groups * 8
    ratios = first["controls"][:, : groups * 3].reshape(-1, groups, 3)[..., GroupControl.COMPRESSION_RATIO].mean(axis=1)
    assert len(ratios) >= 6 and (ratios[:3] == 3).all() and (ratios[3:] == 1.5).all()
    for other in ranks[1:]:
        np.testing.assert_array_equal(other["controls"], first["controls"])
        np.testing.assert_array_equal(other["tokens"], first["tokens"])
    assert [int(r["asked"][0]) for r in ranks] == [len(ratios), 0, 0, 0], "rank 0 decides alone"
    assert len(list(tmp_path.glob("*.started"))) <= 1 + (mood == "dies"), "other ranks start no process"
    # The others wait for rank 0's broadcast; its decision may take the time-out, and the machine some time.
    assert max(r["decided_s"][2:].max() for r in ranks) < TIMEOUT_S + 1.0
    assert np.sort(first["decided_s"])[-3] < TIMEOUT_S, "it is waited for once, not at every interval"
