"""Block rules that a running server can follow. What each does, with its source, stands in its file of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.block_rules.base import BlockRule

_QUEUES, _PAST = frozenset({"queues"}), frozenset({"past"})


@dataclass(frozen=True)
class Utility(BlockRule):
    """The contract's weighted sum of block features (`ledger/utility.py`): `lru` and `lfu` are weights."""

    kind: ClassVar[str] = "utility"
    code: ClassVar[int] = 0


@dataclass(frozen=True)
class FIFO(BlockRule):
    """First cached, first out, however often it is hit."""

    kind: ClassVar[str] = "fifo"
    code: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = _QUEUES


@dataclass(frozen=True)
class TwoQueue(BlockRule):
    """2Q (`ledger/rule_two_queue.py`)."""

    kind: ClassVar[str] = "two_queue"
    code: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = _QUEUES


@dataclass(frozen=True)
class S3FIFO(BlockRule):
    """S3-FIFO (`ledger/rule_s3fifo.py`)."""

    kind: ClassVar[str] = "s3fifo"
    code: ClassVar[int] = 3
    needs: ClassVar[frozenset[str]] = _QUEUES


@dataclass(frozen=True)
class Sieve(BlockRule):
    """SIEVE (`ledger/rule_sieve.py`)."""

    kind: ClassVar[str] = "sieve"
    code: ClassVar[int] = 4
    needs: ClassVar[frozenset[str]] = _QUEUES


@dataclass(frozen=True)
class ARC(BlockRule):
    """ARC (`ledger/rule_arc.py`)."""

    kind: ClassVar[str] = "arc"
    code: ClassVar[int] = 5
    needs: ClassVar[frozenset[str]] = _QUEUES


@dataclass(frozen=True)
class TLRU(BlockRule):
    """Tail-Optimised LRU (`ledger/rule_scores.py`)."""

    threshold: float = 0.5
    """Share of the class's objective for the first token that computing the next prompt may take."""
    next_prompt: float = 4.0
    """Pages that the next prompt of a conversation is expected to add."""

    kind: ClassVar[str] = "tlru"
    code: ClassVar[int] = 6
    needs: ClassVar[frozenset[str]] = _PAST

    def __post_init__(self) -> None:
        for name, low, high in (("threshold", 0.0, 100.0), ("next_prompt", 0.0, 1e6)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"tlru: {name}={getattr(self, name)}: allowed {low:g}..{high:g}")

    def params(self) -> tuple[float, float]:
        """See `BlockRule.params`."""
        return (self.threshold, self.next_prompt)


@dataclass(frozen=True)
class LRB(BlockRule):
    """Relaxed Belady, learned (`ledger/rule_scores.py`, `ledger/reuse.py`); `pikv fit-reuse` fits it."""

    weights: str = ""
    """A safetensors file with the network; empty: the one that comes with the package."""

    kind: ClassVar[str] = "lrb"
    code: ClassVar[int] = 7
    needs: ClassVar[frozenset[str]] = _PAST | {"network"}

    def network(self) -> NDArray[np.float32]:
        """See `BlockRule.network`; raises ValueError where the file has no such network."""
        from pikv_runtime.block_rules.network import load_network

        return load_network(Path(self.weights) if self.weights else None)
