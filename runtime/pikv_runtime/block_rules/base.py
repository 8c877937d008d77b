"""What all block rules share: a name, the ledger's number for it, parameters, and what they need of the ledger."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BlockRule:
    """Which cached block goes first. Fields are parameters."""

    kind: ClassVar[str]
    code: ClassVar[int]
    """`pikv_runtime.ledger.state.RuleCode`."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Arrays that the ledger must have room for, by the names of `ledger/rule_room.py`."""
    offline: ClassVar[bool] = False
    """Whether it must know the workload: only the trace environment can play it."""

    @property
    def name(self) -> str:
        """The spec that makes this rule, without parameters at their default."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return self.kind + (":" if changed else "") + ",".join(changed)

    def params(self) -> tuple[float, float]:
        """Numbers for the ledger, `RuleParam`."""
        return (0.0, 0.0)

    def network(self) -> NDArray[np.float32] | None:
        """Weights of a learned rule, (reuse.WEIGHTS,)."""
        return None
