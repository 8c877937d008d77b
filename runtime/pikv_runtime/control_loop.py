"""The control loop: telemetry, a decision on rank 0, the same control on every rank."""

from __future__ import annotations

import time

import torch

from pikv_runtime import ledger as L
from pikv_runtime.contract import Control, Telemetry, clip_control
from pikv_runtime.ledger.drive import stage
from pikv_runtime.policy.base import Policy
from pikv_runtime.served import Timers
from pikv_runtime.transport import Transport


class ControlLoop:
    """What happens between two control intervals, once per interval and in this order: measure, decide, enforce.

    `telemetry`: of the interval just ended. `control`: decided last. `log`: bytes of every control enforced.
    `clips`: values of controls so far that were NaN or out of range. `unpaid_s`: wall seconds spent here since the
    last iteration; on the wall clock the next one pays for them.
    """

    def __init__(self, groups: int, transport: Transport, timers: Timers) -> None:
        self.telemetry, self.control = Telemetry.zeros(groups), Control.neutral(groups)
        self.log: list[bytes] = []
        self.clips = 0
        self.unpaid_s = 0.0
        self._transport, self._timers = transport, timers

    def measure(self, s: L.Ledger) -> Telemetry:
        """Write the telemetry of the interval just ended."""
        started = time.perf_counter()
        L.write_telemetry(s, 0, self.telemetry.groups, self.telemetry.globals)
        self.unpaid_s += time.perf_counter() - started
        return self.telemetry

    def decide(self, policy: Policy) -> Control:
        """Ask the policy; on other ranks than rank 0 the answer is whatever was decided last."""
        started = time.perf_counter()
        if 0 in self._transport.local_ranks:
            policy.decide(self.telemetry, self.control)
            self.clips += clip_control(self.control)
        seconds = time.perf_counter() - started
        self._timers.decision_s += seconds
        self._timers.decisions += 1
        self.unpaid_s += seconds
        return self.control

    def enforce(self, s: L.Ledger, control: Control) -> None:
        """Put rank 0's `control` into force on every rank, after the control latency; others' is overwritten."""
        started = time.perf_counter()
        for array in (control.groups, control.globals):
            self._transport.broadcast(torch.from_numpy(array))
        self.log.append(control.groups.tobytes() + control.globals.tobytes())
        stage(s, 0, control.groups, control.globals)
        self.unpaid_s += time.perf_counter() - started
