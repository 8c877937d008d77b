"""What every policy is: something that decides."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from pikv_runtime.contract import Control, Telemetry


@runtime_checkable
class Policy(Protocol):
    """Decides between two control intervals. Heuristics, runners and the guard all satisfy it."""

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """The control for the next interval.

        Writes every number of `out` if given, and returns it; keeps no reference to `telemetry`. The result
        may hold NaN or ask for what is not legal: `clip_control` and the cache deal with that.
        """
        ...


PolicyLike = str | os.PathLike[str] | Policy | Callable[[Telemetry], Control] | None
"""What may stand for a policy: a spec, a bundle's folder, an object that decides, a function, or nothing."""


def prepare(policy: Policy) -> None:
    """Start what `policy` needs before it decides, such as a process of its own; most need nothing."""
    getattr(policy, "prepare", _nothing)()


def _nothing() -> None:
    pass
