"""How two policies' controls differ over the same telemetry, column by column."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.contract import GLOBAL_CONTROLS, GROUP_CONTROLS, Array, Control

TIE = 1e-5
"""Differences up to this share of a column's range are those of rounding (runners agree within it)."""
_COLUMNS = GROUP_CONTROLS + GLOBAL_CONTROLS
_RANGE = np.array([c.high - c.low for c in _COLUMNS])


class Difference:
    """Running sums over pairs of controls; NaN differs from everything but NaN."""

    def __init__(self) -> None:
        zeros = np.zeros(len(_COLUMNS))
        self.decisions = self.different = self.identical = 0
        self._first, self._second, self._apart, self._worst = zeros.copy(), zeros.copy(), zeros.copy(), zeros.copy()
        self._differs = np.zeros(len(_COLUMNS), np.int64)

    def add(self, first: Control, second: Control) -> bool:
        """Take one pair in; returns whether it differs by more than rounding."""
        apart = _by_column(np.abs(first.groups - second.groups), np.abs(first.globals - second.globals), np.max)
        differs = ~(apart <= TIE * _RANGE)
        self.decisions += 1
        self.different += bool(differs.any())
        self.identical += same_bits(first, second)
        self._differs += differs
        self._first += _by_column(first.groups, first.globals, np.mean)
        self._second += _by_column(second.groups, second.globals, np.mean)
        self._apart += _by_column(np.abs(first.groups - second.groups), np.abs(first.globals - second.globals), np.mean)
        np.maximum(self._worst, apart, out=self._worst)
        return bool(differs.any())

    def rows(self) -> list[dict[str, Any]]:
        """A row per column that ever differs: means over decisions and groups, in the column's own unit."""
        n = max(1, self.decisions)
        return [
            {
                "control": column.name,
                "unit": column.unit,
                "first": self._first[k] / n,
                "second": self._second[k] / n,
                "mean_difference": self._apart[k] / n,
                "largest_difference": self._worst[k],
                "differs": self._differs[k] / n,
            }
            for k, column in enumerate(_COLUMNS)
            if self._differs[k]
        ]

    def report(self) -> dict[str, Any]:
        """Counts, and the rows."""
        return {
            "decisions": self.decisions,
            "different": self.different,
            "identical": self.identical,
            "controls": self.rows(),
        }


def same_bits(first: Control, second: Control) -> bool:
    """Whether two controls agree in every bit."""
    return first.groups.tobytes() == second.groups.tobytes() and first.globals.tobytes() == second.globals.tobytes()


def _by_column(groups: Array, globals_: Array, pool: Any) -> NDArray[np.float64]:
    """Groups pooled to one number per column, then the globals."""
    return np.concatenate([pool(groups.astype(np.float64), axis=0), globals_.astype(np.float64)])
