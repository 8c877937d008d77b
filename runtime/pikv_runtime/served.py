"""What comes out of serving: finished requests, and where the engine's seconds went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger.state import Ledger, Status
from pikv_runtime.requests import Request


@dataclass(frozen=True)
class Served:
    """A finished request: what came out, and how fast."""

    request: Request
    output_ids: NDArray[np.int32]
    ttft_s: float
    tpot_s: float
    hit_tokens: int
    preempted: int


@dataclass
class Timers:
    """Wall seconds that the engine spent, by part."""

    forward_s: float = 0.0
    tensors_s: float = 0.0
    ledger_s: float = 0.0
    decision_s: float = 0.0
    decisions: int = 0


def with_status(s: Ledger, status: Status) -> list[int]:
    """Lane 0's requests of that status, by number."""
    numbers: list[int] = np.flatnonzero(s.req_status[0, : s.num_requests[0]] == status).tolist()
    return numbers


def served(s: Ledger, q: int, request: Request, output: list[int]) -> Served:
    """Finished request `q` of lane 0."""
    first, finish = float(s.req_first_s[0, q]), float(s.req_finish_s[0, q])
    return Served(
        request,
        np.array(output, np.int32),
        ttft_s=first - request.arrival_s,
        tpot_s=(finish - first) / max(1, request.output_tokens - 1),
        hit_tokens=int(s.req_hit_tokens[0, q]),
        preempted=int(s.req_preempted[0, q]),
    )
