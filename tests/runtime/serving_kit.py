"""A small workload for the embedded model, and one call that serves it."""

from __future__ import annotations

import functools

import numpy as np
import torch

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.engine import Engine
from pikv_runtime.models import load_model
from pikv_runtime.requests import Request, RequestList, chain_hashes

PAGE, OUTPUT = 16, 12
SHARED = "The code of the red door is 4417; the code of the blue door is 9031. "  # 4 pages
QUESTIONS = (
    "The code of the blue door is",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n",
    "When does the bus leave, and who says so?",
    "Monday, Tuesday, Wednesday, ",
)
# Under a cap that binds, with short intervals: more than ten decisions.
LOSSY = RuntimeConfig(
    slots=4, blocks=128, codec="bf16", read="sparse", router="centroid", interval_s=0.03, observe_tokens=2,
    max_batch_tokens=64, audit_share=1.0, cap_bytes=40 * 4 * 8192,
)  # fmt: skip


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


def serve(policy, kind=Engine, config=LOSSY, between=None, **options):
    """Serve; `between(engine, k)` is called before every decision. Returns the engine and its tokens by request."""
    engine = kind(model(), config, policy, **options)
    engine.load(workload())
    engine.measure()
    done, k = False, 0
    while not done:
        if between is not None:
            between(engine, k)
        engine.decide()
        done, k = engine.run_interval(), k + 1
        engine.measure()
    engine.close()
    return engine, [list(tokens) for tokens in engine.outputs]


def timeline(engine):
    """What the model clock, the ledger and the controls say of a run."""
    s = engine.ledger
    count = len(engine.requests)
    return (
        engine.control_log, float(s.clock_s[0]), s.tally[0].tolist(), s.req_first_s[0, :count].tolist(),
        s.req_finish_s[0, :count].tolist(), s.req_status[0, :count].tolist(),
    )  # fmt: skip
