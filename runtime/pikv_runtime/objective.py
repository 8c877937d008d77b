"""The objective, defined once: J = L / L_U + λ1·M + λ2·(1 − F), version 1.

The paper's Latency + λ1·Memory − λ2·Fidelity plus the constant λ2, so that J ≥ 0 and ratios mean something.
U is the uncapped exact run of the same workload on the model clock. Every term is linear in the ledger's
tallies, so an interval's charge is the same formula on their differences, and an episode's charges sum to J.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger.state import Tally

OBJECTIVE_VERSION = 1
LAMBDA1 = 0.25
LAMBDA2 = 10.0

Floats = NDArray[np.float64]
_CHARGED = [Tally.LATENCY_CHARGE, Tally.BYTE_SECONDS, Tally.LOSS]


@dataclass(frozen=True)
class Reference:
    """What J is measured against: the uncapped exact run U of one workload.

    `latency` is Σ c_i·(TTFT_i/SLO_ttft + TPOT_i/SLO_tpot) in U; `duration_s` its length; `audited` the weight
    Σ w_i over all audited tokens and layers of the workload; `charges` (N,) the latency of each request in U.
    """

    latency: float
    duration_s: float
    audited: float
    charges: Floats
    busy_share: float
    live_bytes_mean: float
    live_bytes_peak: float


@dataclass(frozen=True)
class Score:
    """J and its three parts: latency L/L_U, memory M, lost fidelity 1 − F (before the λ's)."""

    latency: float
    memory: float
    loss: float
    lambda1: float = LAMBDA1
    lambda2: float = LAMBDA2

    @property
    def J(self) -> float:
        """The objective."""
        parts = np.array([self.latency, self.memory, self.loss])
        return float(weigh(parts, np.array([self.lambda1, self.lambda2])))

    @property
    def fidelity(self) -> float:
        """F = 1 − class-weighted mean of (missed mass + Σ mass·codec error), audited tokens and layers."""
        return 1.0 - self.loss


def denominators(reference: Reference, cap_bytes: float) -> Floats:
    """What latency, memory and loss are divided by, (3,). `cap_bytes` over all ranks."""
    audited = reference.audited if reference.audited > 0 else np.inf  # nothing audited: nothing lost
    return np.array([reference.latency, cap_bytes * reference.duration_s, audited])


def charges(tally: Floats, scale: Floats) -> Floats:
    """Latency, memory and lost fidelity (..., 3) of tallies (..., len(Tally)) or of their differences.

    `scale` (..., 3) are the `denominators`. This and `weigh` are the only definition of J.
    """
    return tally[..., _CHARGED] / scale


def weigh(parts: Floats, lambdas: Floats) -> Floats:
    """J (...) of `parts` (..., 3) under the prices `lambdas` (..., 2)."""
    return parts[..., 0] + lambdas[..., 0] * parts[..., 1] + lambdas[..., 1] * parts[..., 2]


def score(
    tally: Floats,
    reference: Reference,
    cap_bytes: float,
    lambda1: float = LAMBDA1,
    lambda2: float = LAMBDA2,
) -> Score:
    """Score a tally (len(Tally),), or the difference of two (an interval's charge); cap over all ranks."""
    latency, memory, loss = charges(tally, denominators(reference, cap_bytes)).tolist()
    return Score(latency, memory, loss, lambda1, lambda2)
