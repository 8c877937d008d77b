"""What an episode came to, in the numbers that parity compares: of a log, of a ledger, of the trace environment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger.state import NO_CAP, Ledger, Tally
from pikv_runtime.objective import Reference, score
from pikv_runtime.serving_log import ServingLog

F8 = NDArray[np.float64]


def reference_of(log: ServingLog) -> Reference:
    """The run's reference U, as far as J needs it."""
    known = log.header["reference"]
    charges = np.array(known["charges"], np.float64)
    return Reference(
        known["latency"], known["duration_s"], known["audited"], charges, 0.0, 0.0, known["live_bytes_peak"]
    )


def logged_outcome(log: ServingLog) -> dict[str, float]:
    """What the live run came to."""
    return _numbers(log, log.arrays["final_tally"], float(log.arrays["clock_s"][-1]) if log.iterations else 0.0)


def ledger_outcome(log: ServingLog, s: Ledger) -> dict[str, float]:
    """What the simulator came to with the log's requests, in lane 0 of `s`."""
    return _numbers(log, s.tally[0], float(s.clock_s[0]))


def _numbers(log: ServingLog, tally: F8, clock_s: float) -> dict[str, float]:
    reference, cap = reference_of(log), float(log.header["cap_bytes"])
    total = cap * int(log.header["ranks"]) if cap < NO_CAP else max(1.0, reference.live_bytes_peak)
    lambda1, lambda2 = log.arrays["lambdas"].tolist()
    return outcome(tally, clock_s, reference, total, (lambda1, lambda2))


def outcome(
    tally: F8, clock_s: float, reference: Reference, cap_total: float, lambdas: Sequence[float]
) -> dict[str, float]:
    """J with its parts, and what parity compares, of an episode that is over: `bytes_mean` over time, `hit_rate` of
    prompt tokens, seconds of the clock that went by and that were busy."""
    found = score(tally, reference, cap_total, *lambdas)
    return {
        "J": found.J,
        "latency": found.latency,
        "memory": found.memory,
        "loss": found.loss,
        "hit_rate": float(tally[Tally.HIT_TOKENS] / max(1.0, tally[Tally.PROMPT_TOKENS])),
        "bytes_mean": float(tally[Tally.BYTE_SECONDS] / clock_s) if clock_s > 0 else 0.0,
        "duration_s": clock_s,
        "busy_s": float(tally[Tally.BUSY_S]),
        "iterations": float(tally[Tally.ITERATIONS]),
        "preemptions": float(tally[Tally.PREEMPTIONS]),
        "evicted_pages": float(tally[Tally.EVICTED_PAGES]),
        "encoded_pages": float(tally[Tally.ENCODED_PAGES]),
    }
