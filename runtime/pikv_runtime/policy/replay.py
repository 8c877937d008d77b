"""A decision log played again: every decision reproduced bit for bit, or another policy's beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pikv_runtime.contract import Control, Telemetry, clip_control
from pikv_runtime.controllers import make_policy
from pikv_runtime.policy.base import Policy
from pikv_runtime.policy.decision_log import (
    DecisionLogError,
    LogHeader,
    manifest_digest,
    read_decisions,
    read_header,
)
from pikv_runtime.policy.difference import Difference
from pikv_runtime.policy.loading import BundlePolicy, load_policy
from pikv_runtime.views.base import GLOBAL_BOUNDS, GROUP_BOUNDS, sanitise


def replay(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Make every decision of a log again, by whom made it, and compare all bits.

    What the clock decided (a time-out) and what the guard remembers (it stays engaged) is not in the telemetry of one
    decision; the log's `source` says who decided, and that one is asked again.

    Returns:
        `decisions`, `identical`, `different` (by more than rounding), `first_difference` (index, or None), `controls`.

    Raises:
        DecisionLogError: No log, one of another contract, or the bundle is not the one that decided.
    """
    header = read_header(path)
    deciders = _deciders(Path(path), header)
    difference, first = Difference(), None
    for decision in read_decisions(path):
        if decision.source not in deciders:
            raise DecisionLogError(
                f"{path}: decision {decision.index} was made by {decision.source!r}, the log names {sorted(deciders)}"
            )
        again = deciders[decision.source].decide(decision.telemetry)
        clip_control(again)
        identical = difference.identical
        difference.add(decision.control, again)
        if difference.identical == identical and first is None:
            first = decision.index
    return {"log": str(path), "policy": header.policy, "first_difference": first, **difference.report()}


def what_if(path: str | os.PathLike[str], policy: str | os.PathLike[str]) -> dict[str, Any]:
    """What another policy, without a guard, would have decided on a log's telemetry.

    It is asked about states that the logged policy led to: this says where the two disagree, not which is better.

    Returns:
        As `replay`; in `controls`, `first` is the log and `second` the other policy.
    """
    header, other, difference, first = read_header(path), load_policy(policy, guard=False), Difference(), None
    for decision in read_decisions(path):
        answer = other.decide(decision.telemetry)
        clip_control(answer)
        if difference.add(decision.control, answer) and first is None:
            first = decision.index
    report = difference.report()
    return {"log": str(path), "policy": header.policy, "other": str(policy), "first_difference": first, **report}


def _deciders(path: Path, header: LogHeader) -> dict[str, Policy]:
    """Who decides, by source."""
    runner = header.runner or "native"
    policy = load_policy(header.policy, runner=runner, guard=False)
    if isinstance(policy, BundlePolicy):
        found = manifest_digest(policy.bundle.path)
        if found != header.manifest:
            raise DecisionLogError(
                f"{path}: made by manifest {header.manifest[:12]}…, {header.policy} has {found[:12]}… now"
            )
        if policy.runner.name != runner:  # type: ignore[attr-defined]
            raise DecisionLogError(f"{path}: made by the runner {runner!r}, which is not available here")
    deciders: dict[str, Policy] = {"policy": policy}
    if header.fallback:
        deciders["fallback"] = _Sanitised(make_policy(header.fallback))
    return deciders


class _Sanitised:
    """The guard's fallback sees telemetry without NaN, within its ranges."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        told = Telemetry(sanitise(telemetry.groups, GROUP_BOUNDS), sanitise(telemetry.globals, GLOBAL_BOUNDS))
        return self._policy.decide(told, out)
