"""The guard: a learned policy decides only while everything about it is credible; else a heuristic does."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, fields

import numpy as np

from pikv_runtime.contract import Array, Control, GlobalFeature, Telemetry, clip_control
from pikv_runtime.policy.base import Policy, prepare
from pikv_runtime.views.base import (
    CONTROL_GLOBAL_BOUNDS,
    CONTROL_GROUP_BOUNDS,
    GLOBAL_BOUNDS,
    GROUP_BOUNDS,
    sanitise,
)

_LOG = logging.getLogger("pikv")

REASONS = ("telemetry", "vetoes", "fidelity", "worst_class", "error", "nan", "timeout")
"""Why a decision was taken away from the policy."""
_SLACK = np.float32(1e-4)  # rounding of a value at the end of its range is no reason
_GROUPS_CREDIBLE = GROUP_BOUNDS[0] - _SLACK, GROUP_BOUNDS[1] + _SLACK
_GLOBALS_CREDIBLE = GLOBAL_BOUNDS[0] - _SLACK, GLOBAL_BOUNDS[1] + _SLACK


@dataclass(frozen=True)
class GuardLimits:
    """What is still credible. Every limit is inclusive."""

    out_of_range: float = 0.02
    """Share of telemetry values outside their declared range (NaN counts)."""
    timeout_us: float = 50_000.0
    """Longest decision in wall time; a later answer is not used. Infinity keeps runs on the model clock
    reproducible on a machine so busy that a process may stand still for this long."""
    veto_rate: float = 0.5
    """Share of asked changes that were not legal, last interval."""
    fidelity_floor: float = 0.8
    """Least cumulative fidelity, classes weighted by the running requests."""
    worst_class_floor: float = 0.7
    """Least cumulative fidelity of any class."""
    recover_after: int = 10
    """Clean shadow evaluations in a row before the policy decides again."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            share = field.name not in ("timeout_us", "recover_after")
            if not (0 <= value <= 1 if share else value > 0):
                raise ValueError(f"{field.name}={value}: must be {'in 0..1' if share else 'positive'}")


class Guard:
    """A watched policy: a trip makes `fallback` decide, in the same call, until the policy is clean again.

    While `engaged`, the policy is still evaluated, in shadow: so it can recover. Its answer never touches
    `out` before it is checked. Vetoes and losses told while engaged are partly the fallback's own; still the
    policy comes back only when they too are clean: cumulative losses must have been diluted.
    """

    def __init__(self, policy: Policy, fallback: Policy, limits: GuardLimits | None = None) -> None:
        self.policy = policy
        self.fallback = fallback
        self.limits = limits or GuardLimits()
        self.engaged = False
        self.reason: str | None = None
        """Why the latest trip happened."""
        self.trouble: str | None = None
        """What was wrong at the latest decision; None: nothing."""
        self.counters = dict.fromkeys(("decisions", "fallback_decisions", "trips", "recoveries"), 0)
        self.counters |= dict.fromkeys(REASONS, 0)
        self.clips = 0
        """Values out of range that were clipped."""
        self._clean_in_a_row = self._illegal = 0
        self._shadow = Control.zeros(0)
        self._told = Telemetry.zeros(0)

    @property
    def name(self) -> str:
        """The policy's name."""
        return str(getattr(self.policy, "name", type(self.policy).__name__))

    def prepare(self) -> None:
        """Start what the policy needs before it decides, such as a process."""
        prepare(self.policy)

    def metrics(self) -> dict[str, float]:
        """Counters and state, for a logger."""
        return {f"guard/{name}": float(n) for name, n in (self.counters | {"engaged": self.engaged}).items()}

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`. The result is always legal."""
        if self._told.groups.shape != telemetry.groups.shape:
            self._told = Telemetry.zeros(len(telemetry.groups))
            self._shadow = Control.zeros(len(telemetry.groups))
        if out is None:
            out = Control.zeros(len(telemetry.groups))
        self.counters["decisions"] += 1
        self.trouble = self._check_telemetry(telemetry) or self._evaluate(telemetry)
        self._update(self.trouble)
        if self.engaged:
            self.counters["fallback_decisions"] += 1
            sanitise(telemetry.groups, GROUP_BOUNDS, self._told.groups)
            sanitise(telemetry.globals, GLOBAL_BOUNDS, self._told.globals)
            self.fallback.decide(self._told, out)
            illegal = _outside_control(out)
        else:
            np.copyto(out.groups, self._shadow.groups)
            np.copyto(out.globals, self._shadow.globals)
            illegal = self._illegal
        if illegal:
            self.clips += clip_control(out)
        return out

    def _check_telemetry(self, telemetry: Telemetry) -> str | None:
        """The first thing in the telemetry that is not credible."""
        limits, told = self.limits, telemetry.globals
        outside = _outside(telemetry.groups, _GROUPS_CREDIBLE) + _outside(told, _GLOBALS_CREDIBLE)
        if outside > limits.out_of_range * (telemetry.groups.size + telemetry.globals.size):
            return "telemetry"
        # Written so that NaN in one of these few values trips too.
        if not told[GlobalFeature.VETOES] <= limits.veto_rate:
            return "vetoes"
        losses = told[GlobalFeature.LOSS_CLASS0], told[GlobalFeature.LOSS_CLASS1]
        share = told[GlobalFeature.CLASS1_SHARE]
        if not (1 - share) * losses[0] + share * losses[1] <= 1 - limits.fidelity_floor:
            return "fidelity"
        if not all(loss <= 1 - limits.worst_class_floor for loss in losses):
            return "worst_class"
        return None

    def _evaluate(self, telemetry: Telemetry) -> str | None:
        """Let the policy decide, in shadow; what is wrong with the answer."""
        # A number that the policy forgets to write stays NaN, rather than an earlier answer.
        self._shadow.groups.fill(np.nan)
        self._shadow.globals.fill(np.nan)
        start = time.perf_counter_ns()
        try:
            self.policy.decide(telemetry, self._shadow)
        except TimeoutError:  # a policy in a worker, whose answer is not waited for any longer
            return "timeout"
        except Exception as error:  # whatever a policy does, serving goes on
            _LOG.debug("policy %s raised %r", self.name, error)
            return "error"
        elapsed_us = (time.perf_counter_ns() - start) / 1000
        shadow = self._shadow
        self._illegal = _outside_control(shadow)
        if self._illegal and (np.isnan(shadow.groups).any() or np.isnan(shadow.globals).any()):
            return "nan"
        return "timeout" if elapsed_us > self.limits.timeout_us else None

    def _update(self, reason: str | None) -> None:
        """Engage on any reason; release after enough clean evaluations in a row."""
        if reason is not None:
            self.counters[reason] += 1
            self._clean_in_a_row = 0
            if not self.engaged:
                self.engaged, self.reason = True, reason
                self.counters["trips"] += 1
                _LOG.warning("policy %s: guard tripped by %s, the fallback decides", self.name, reason)
            return
        self._clean_in_a_row += 1
        if self.engaged and self._clean_in_a_row >= self.limits.recover_after:
            self.engaged = False
            self.counters["recoveries"] += 1
            _LOG.info("policy %s: clean %d times in a row, it decides again", self.name, self._clean_in_a_row)


def _outside(values: Array, bounds: tuple[Array, Array]) -> int:
    """Values outside `bounds`; NaN is."""
    return values.size - int(np.count_nonzero((values >= bounds[0]) & (values <= bounds[1])))


def _outside_control(control: Control) -> int:
    return _outside(control.groups, CONTROL_GROUP_BOUNDS) + _outside(control.globals, CONTROL_GLOBAL_BOUNDS)
