"""What is kept of a run's decisions: a log, and what a shadow would have decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pikv_runtime.controllers import make_policy
from pikv_runtime.policy.base import Policy
from pikv_runtime.policy.decision_log import DecisionLog, Logged, header_of
from pikv_runtime.policy.guard import Guard
from pikv_runtime.policy.loading import DEFAULT_FALLBACK, load_policy
from pikv_runtime.policy.shadow import Shadow


@dataclass(frozen=True)
class Watch:
    """What to keep.

    Args:
        log: File (`.jsonl`) for the decisions that came into force; None: none.
        share: Share of them that is logged, by hash.
        shadow: Policy that is asked beside the one that decides; empty: none. Its decisions go to the log's name with
            `.shadow` before its ending.
    """

    log: Path | None = None
    share: float = 1.0
    shadow: str = ""

    def over(self, policy: Policy, spec: str) -> Watched:
        """`policy`, loaded from `spec`, with all that is kept of it."""
        watched = Watched(policy)
        if self.shadow:
            candidate = load_policy(self.shadow)
            if not isinstance(candidate, Guard):  # a heuristic: no harm is expected of it, nor let through
                candidate = Guard(candidate, make_policy(DEFAULT_FALLBACK))
            log = None
            if self.log is not None:
                log = self._log(self.log.with_suffix(f".shadow{self.log.suffix}"), candidate, self.shadow)
                watched.logs.append(log)
            watched.policy = watched.shadow = Shadow(policy, candidate, log)
        if self.log is not None:
            watched.logs.append(self._log(self.log, policy, spec))
            watched.policy = Logged(watched.policy, watched.logs[-1])
        return watched

    def _log(self, path: Path, policy: Policy, spec: str) -> DecisionLog:
        return DecisionLog(path, header_of(policy, spec, self.share))


@dataclass
class Watched:
    """A policy under a `Watch`; close it when the run is over."""

    policy: Policy
    shadow: Shadow | None = None
    logs: list[DecisionLog] = field(default_factory=list)

    def close(self) -> dict[str, Any]:
        """End the logs; the shadow's report, empty without one."""
        for log in self.logs:
            log.close()
        return self.shadow.report() if self.shadow is not None else {}
