"""Shadow mode: another policy is asked beside the one that decides, and what it would have changed is counted."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pikv_runtime.contract import Control, Telemetry, clip_control
from pikv_runtime.policy.base import Policy, prepare
from pikv_runtime.policy.decision_log import DecisionLog, Logged
from pikv_runtime.policy.difference import Difference
from pikv_runtime.policy.guard import Guard


class Shadow:
    """Applies what `applied` decides; `candidate` sees the same telemetry, and its answer touches nothing.

    The candidate runs behind a guard: whatever it does, the answer of `applied` comes into force. It sees telemetry
    that the other policy's controls led to: the report says what it would have asked for there, not what would have
    come of it.

    Args:
        applied: Whose control comes into force.
        candidate: Who is watched.
        log: Where the candidate's decisions are kept.
    """

    def __init__(self, applied: Policy, candidate: Guard, log: DecisionLog | None = None) -> None:
        self.applied, self.candidate = applied, candidate
        self._beside: Policy = candidate if log is None else Logged(candidate, log)
        self.difference = Difference()
        self._asked = Control.zeros(0)
        self._costs = {"applied": 0.0, "candidate": 0.0}

    def __getattr__(self, name: str) -> Any:
        if name == "applied":
            raise AttributeError(name)
        return getattr(self.applied, name)

    def prepare(self) -> None:
        """Start both, where they need it."""
        prepare(self.applied)
        prepare(self.candidate)

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`: the control of `applied`."""
        if self._asked.groups.shape[0] != len(telemetry.groups):
            self._asked = Control.zeros(len(telemetry.groups))
        begin = time.perf_counter()
        out = self.applied.decide(telemetry, out)
        between = time.perf_counter()
        self._beside.decide(telemetry, self._asked)
        end = time.perf_counter()
        self._costs["applied"] += between - begin
        self._costs["candidate"] += end - between
        legal = out.copy()
        clip_control(legal)
        self.difference.add(legal, self._asked)
        return out

    def report(self) -> dict[str, Any]:
        """What would have changed: `first` is applied, `second` the candidate; and how the candidate behaved."""
        n = max(1, self.difference.decisions)
        return {
            "applied": str(getattr(self.applied, "name", type(self.applied).__name__)),
            "candidate": self.candidate.name,
            **self.difference.report(),
            "decision_us": {name: 1e6 * float(np.divide(seconds, n)) for name, seconds in self._costs.items()},
            "guard": dict(self.candidate.counters),
        }
