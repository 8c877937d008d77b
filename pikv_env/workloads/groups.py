"""Rows of a trace library by kind, group and turn, as the sharing rules draw them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.library import TraceLibrary

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Groups:
    """Library rows ordered by kind, group and turn; a group's rows lie side by side."""

    rows: Ints
    """(R,) library rows."""
    start: Ints
    """(G,) first place in `rows` of each group."""
    count: Ints
    """(G,) rows of each group."""
    first: Ints
    """(K + 1,) first group of each kind, and the end."""

    @classmethod
    def of(cls, library: TraceLibrary, kinds: tuple[str, ...]) -> Groups:
        """The groups of some kinds, in the order of `kinds`."""
        rows: list[Ints] = []
        start: list[Ints] = []
        count: list[Ints] = []
        first = [0]
        for kind in kinds:
            own = library.rows_of(kind)
            own = own[np.lexsort((library.turn_of[own], library.group_of[own]))]
            _, begin, size = np.unique(library.group_of[own], return_index=True, return_counts=True)
            start.append(begin + sum([len(r) for r in rows]))
            rows.append(own)
            count.append(size)
            first.append(first[-1] + len(size))
            if not len(own):
                raise ValueError(f"the library has no contents of kind {kind!r}")
        return cls(np.concatenate(rows), np.concatenate(start), np.concatenate(count), np.array(first))

    def longest(self) -> Groups:
        """Only the groups with the most rows: a dialogue cut short has no turn to give."""
        if len(self.first) != 2:
            raise ValueError(f"sessions draw from 1 content kind, not {len(self.first) - 1}")
        whole = np.flatnonzero(self.count == self.count.max())
        return replace(self, start=self.start[whole], count=self.count[whole], first=np.array([0, len(whole)]))
