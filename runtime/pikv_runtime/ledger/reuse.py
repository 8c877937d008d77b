"""When a block will be used again: its features, and a small network that predicts from them."""

from __future__ import annotations

import math

import numpy as np

from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F8, Ledger, Past

FEATURES = (
    "age", "gap", "gap_before", "lifetime", "uses", "depth", "length", "children", "history", "place", "class",
    "usual_gap",
)  # fmt: skip
"""What is told of a block, in order: log2(1 + intervals) since its last use, between that and the one before, between
that and the one before it, since it was computed; log2 uses; log2(1 + pages): depth in its chain, prompt of the request
that made it; log2(1 + cached continuations); log2(1 + pages) that its last user had; depth over these; weight of
the class that made it, w/(1 + w); log2(1 + intervals) that reuse takes in this lane, moving. No content, no tenant."""

HIDDEN = 16
WEIGHTS = 2 * len(FEATURES) + len(FEATURES) * HIDDEN + 2 * HIDDEN + 1
"""Numbers of the network: means and inverse deviations of the features; first layer by hidden unit; its biases;
second layer; its bias."""
NEVER = 16.0  # the gap before a first use, log2(1 + intervals)
MOST_GAP = 20.0


@jit
def _log(s: Ledger, i: int, seconds: float) -> float:
    return math.log2(1.0 + max(seconds, 0.0) / s.interval_s[i])


@jit
def block_features(s: Ledger, i: int, block: int, out: F8) -> None:
    """Write the features of a block as of now into `out` (12,)."""
    last, past = s.block_last_s[i, block], s.block_past[i, block]
    before, earlier = past[Past.USE_BEFORE], past[Past.USE_EARLIER]
    out[0] = _log(s, i, s.clock_s[i] - last)
    out[1] = _log(s, i, last - before) if before >= 0.0 else NEVER
    out[2] = _log(s, i, before - earlier) if earlier >= 0.0 else NEVER
    out[3] = _log(s, i, s.clock_s[i] - past[Past.MADE])
    out[4] = math.log2(max(1.0, float(s.block_uses[i, block])))
    out[5] = math.log2(1.0 + s.block_depth[i, block])
    out[6] = math.log2(1.0 + s.block_length[i, block] / s.page_tokens)
    out[7] = math.log2(1.0 + s.block_children[i, block])
    pages = past[Past.TOKENS] / s.page_tokens
    out[8] = math.log2(1.0 + pages)
    out[9] = min(1.0, (s.block_depth[i, block] + 1.0) / max(1.0, pages))
    weight = s.class_weight[i, s.block_class[i, block]]
    out[10] = weight / (1.0 + weight)
    out[11] = math.log2(1.0 + max(0.0, s.moving[i, 4]))


@jit
def predict(weights, features: F8) -> float:  # type: ignore[no-untyped-def]
    """The network (WEIGHTS,) on one row of features: log2(1 + intervals) until the next use. Hidden units are
    softsign: no table, no library call, and the same to the last bit wherever it runs."""
    n = features.shape[0]
    total = float(weights[WEIGHTS - 1])
    at = 2 * n
    for h in range(HIDDEN):
        value = float(weights[2 * n + HIDDEN * n + h])
        for k in range(n):
            value += float(weights[at + k]) * ((features[k] - float(weights[k])) * float(weights[n + k]))
        at += n
        total += float(weights[2 * n + HIDDEN * (n + 1) + h]) * (value / (1.0 + abs(value)))
    return total


@jit
def expected_gap(s: Ledger, i: int, block: int) -> float:
    """Predicted intervals until the block's next use."""
    features = np.empty(len(FEATURES), np.float64)
    block_features(s, i, block, features)
    return 2.0 ** min(max(predict(s.rule_weights[i], features), 0.0), MOST_GAP) - 1.0
