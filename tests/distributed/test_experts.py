"""Expert weights spread over processes by transformers: the same tokens, a share of the weights each."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.engine import Engine
from pikv_runtime.models import load_model
from pikv_runtime.models.experts import spread_experts, spread_in
from pikv_runtime.requests import Request, RequestList
from pikv_runtime.transport import RankFailedError, TorchDistTransport, run_ranks

CONFIG = RuntimeConfig(slots=4, blocks=128, interval_s=0.1, max_batch_tokens=64, shard_map="page_stripe")


@functools.cache
def model():
    torch.set_num_threads(1)
    return load_model("embedded")[0]


def workload() -> RequestList:
    """The second request comes when the first is alone: one rank has nothing to do for a while."""
    requests = []
    for q, text in enumerate(
        ("The bus leaves at nine; who says so? The bus leaves at", "ada=713;ben=208;ada=713;ben=")
    ):
        ids = np.frombuffer((text * 2).encode(), np.uint8).astype(np.int32)
        requests.append(Request(q, 0.5 * q, len(ids), 10, np.zeros(20, np.int64), 0, prompt_ids=ids))
    return RequestList("experts", 1.0, tuple(requests))


def weights(loaded) -> int:
    return sum(getattr(p, "_local_tensor", p).nbytes for p in loaded.parameters())


def serve(loaded, transport=None) -> np.ndarray:
    served = sorted(Engine(loaded, CONFIG, transport=transport).run(workload()), key=lambda d: d.request.request_id)
    return np.stack([done.output_ids for done in served])


def spread(rank: int, world: int) -> dict[str, np.ndarray]:
    loaded = copy.deepcopy(model())
    spread_experts(loaded)
    held = next(iter(spread_in(loaded.model.layers[0]).parameters()))._local_tensor.shape[0]
    tokens = serve(loaded, TorchDistTransport(timeout_s=100))
    return {"tokens": tokens, "weights": np.array(weights(loaded)), "experts": np.array(held)}


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_spread_experts_give_the_same_tokens(world) -> None:
    whole = model()
    for found in run_ranks(spread, world, timeout_s=150):
        np.testing.assert_array_equal(found["tokens"], serve(whole))
        assert int(found["experts"]) == 8 // world
        assert int(found["weights"]) < (1.15 / world + 0.1) * weights(whole)
    assert spread_in(whole.model.layers[0]) is None


def uneven(rank: int, world: int) -> dict[str, np.ndarray]:
    spread_experts(copy.deepcopy(model()))
    return {}


@pytest.mark.distributed
def test_experts_that_do_not_divide_are_refused() -> None:
    model()
    with pytest.raises(RankFailedError, match="Cannot evenly shard 8 experts across 3"):
        run_ranks(uneven, 3, timeout_s=60)


def test_one_process_has_nothing_to_spread() -> None:
    with pytest.raises(ValueError, match="start them with torchrun"):
        spread_experts(model())
