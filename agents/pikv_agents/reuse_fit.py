"""Fits the learned block rule: when will a cached block be used again? Trained on what training families really did.

Blocks are looked at in lanes of the trace environment that are hardly short of memory, so that old blocks are there to
be seen; their features are the ledger's own (`pikv_runtime.ledger.reuse`), and the label is the next lookup of the same
block in the workload. Song et al. (NSDI 2020) learn the same quantity, log time to the next request, with trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_agents.rollout import Suite
from pikv_env.batch import TraceBatch
from pikv_runtime.block_rules import Orders, make_block_rule
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.controllers import make_policy
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.reuse import FEATURES, HIDDEN, WEIGHTS, block_features
from pikv_runtime.ledger.state import F8, I8, Ledger

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ReuseConfig:
    """How samples are drawn and the network is fitted."""

    pressure: float = 0.5
    """Of the lanes that are looked at."""
    blocks: int = 48
    """Blocks looked at after each interval, with replacement."""
    window_s: float = 900.0
    """What is not used again within this time counts as used at twice of it: LRB's relaxed boundary."""
    epochs: int = 30
    batch: int = 1024
    rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class Samples:
    """Features (n, 12) of blocks, and seconds until their next use (n,), infinite: none."""

    features: Floats
    gaps_s: Floats

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """All of them."""
        return cls(np.concatenate([p.features for p in parts]), np.concatenate([p.gaps_s for p in parts]))


@jit
def _features_of(s: Ledger, i: int, blocks: I8, out: F8) -> None:
    for k in range(blocks.shape[0]):
        block_features(s, i, blocks[k], out[k])


def lookups(batch: TraceBatch, i: int) -> dict[int, Floats]:
    """When each block of lane `i`'s workload is looked up, seconds, by hash."""
    found: dict[int, list[float]] = {}
    tokens = batch.config.runtime.page_tokens
    for request in batch.prepared(i).workload.requests:
        for name in request.hash_ids[: (request.prompt_tokens - 1) // tokens].tolist():
            found.setdefault(name, []).append(request.arrival_s)
    return {name: np.array(times) for name, times in found.items()}


def collect(suite: Suite, families: Sequence[str], seeds: Sequence[int], config: ReuseConfig) -> Samples:
    """Samples of the workloads (family, seed)."""
    parts = [_collect(suite.batch(family, seed, 1), config) for family in families for seed in seeds]
    return Samples.joined(parts)


def _collect(batch: TraceBatch, config: ReuseConfig) -> Samples:
    """Play one lane to its end under an LRU of blocks that remembers what the features need."""
    batch.reset_lane(0, 0, config.pressure, orders=Orders(make_block_rule("tlru:threshold=100")))
    policy, rng, used = make_policy("lazy/h2o"), np.random.default_rng(config.seed), lookups(batch, 0)
    told = Telemetry(batch.groups[0], batch.globals[0])
    asked = Control(batch.control_groups[0], batch.control_globals[0])
    rows, gaps = [], []
    while not batch.done[0]:
        policy.decide(told, asked)
        batch.step()
        s, now = batch.state, float(batch.state.clock_s[0])
        cached = np.flatnonzero(s.block_cached[0])
        if len(cached) == 0:
            continue
        blocks = rng.choice(cached, config.blocks)
        features = np.empty((len(blocks), len(FEATURES)))
        _features_of(s, 0, blocks, features)
        rows.append(features)
        for name in s.block_hash[0, blocks].tolist():
            times = used.get(name, np.empty(0))
            k = int(np.searchsorted(times, now, side="right"))
            gaps.append(times[k] - now if k < len(times) else np.inf)
    return Samples(np.concatenate(rows), np.array(gaps))


def targets(samples: Samples, interval_s: float, config: ReuseConfig) -> Floats:
    """log2(1 + intervals) until the next use; beyond the window, twice the window."""
    gaps = np.where(samples.gaps_s <= config.window_s, samples.gaps_s, 2 * config.window_s)
    return np.log2(1 + gaps / interval_s)


def fit(samples: Samples, interval_s: float, config: ReuseConfig) -> NDArray[np.float32]:
    """The network by least squares on log gaps, (WEIGHTS,) in the order of `reuse.predict`."""
    import torch

    torch.manual_seed(config.seed)
    mean, deviation = samples.features.mean(0), np.maximum(samples.features.std(0), 1e-3)
    x = torch.tensor((samples.features - mean) / deviation, dtype=torch.float32)
    y = torch.tensor(targets(samples, interval_s, config), dtype=torch.float32)
    net = torch.nn.Sequential(torch.nn.Linear(len(FEATURES), HIDDEN), torch.nn.Softsign(), torch.nn.Linear(HIDDEN, 1))
    with torch.no_grad():
        net[2].bias.fill_(float(y.mean()))
    optimizer = torch.optim.Adam(net.parameters(), config.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    for _ in range(config.epochs):
        for part in torch.randperm(len(x)).split(config.batch):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(net(x[part])[:, 0], y[part]).backward()
            optimizer.step()
        schedule.step()
    parts = [torch.tensor(mean), torch.tensor(1 / deviation)]
    parts += [net[0].weight.flatten(), net[0].bias, net[2].weight.flatten(), net[2].bias]
    network = torch.cat([p.detach().float() for p in parts]).numpy()
    assert network.shape == (WEIGHTS,)
    return network


def predictions(network: NDArray[np.float32], features: Floats) -> Floats:
    """`reuse.predict` on many rows, in numpy: log2(1 + intervals) until the next use, (n,)."""
    n = len(FEATURES)
    weights = network.astype(np.float64)
    x = (features - weights[:n]) * weights[n : 2 * n]
    first = weights[2 * n : 2 * n + HIDDEN * n].reshape(HIDDEN, n)
    bias, second = weights[2 * n + HIDDEN * n :][:HIDDEN], weights[2 * n + HIDDEN * (n + 1) :][:HIDDEN]
    hidden = x @ first.T + bias
    return weights[-1] + (hidden / (1 + np.abs(hidden))) @ second


def auc(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Chance that a positive has a higher score than another (ties half): the area under the ROC curve; NaN where
    all are alike."""
    from scipy.stats import rankdata

    ones, others = int(positive.sum()), int((~positive).sum())
    if ones == 0 or others == 0:
        return float("nan")
    return float((rankdata(score)[positive].sum() - ones * (ones + 1) / 2) / (ones * others))


def ranking(network: NDArray[np.float32], samples: Samples, windows_s: Sequence[float]) -> list[dict[str, Any]]:
    """How well "used again within a window" is told by the network, by recency (LRU) and by uses (LFU)."""
    predicted = predictions(network, samples.features)
    rows = []
    for window_s in windows_s:
        soon = samples.gaps_s <= window_s
        rows.append(
            {
                "window_s": window_s,
                "reused": float(soon.mean()),
                "auc": auc(-predicted, soon),
                "auc_recency": auc(-samples.features[:, FEATURES.index("age")], soon),
                "auc_uses": auc(samples.features[:, FEATURES.index("uses")], soon),
            }
        )
    return rows
