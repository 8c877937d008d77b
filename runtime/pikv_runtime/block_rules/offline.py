"""Block rules that know the workload: bounds to compare with, played by the trace environment alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pikv_runtime.block_rules.base import BlockRule


@dataclass(frozen=True)
class Belady(BlockRule):
    """The block whose next use lies furthest ahead goes first (`ledger/rule_scores.py`)."""

    kind: ClassVar[str] = "belady"
    code: ClassVar[int] = 8
    needs: ClassVar[frozenset[str]] = frozenset({"past", "uses"})
    offline: ClassVar[bool] = True
