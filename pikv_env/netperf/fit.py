"""Fitting links: start-up time and seconds per byte by non-negative least squares of relative errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pikv_env.netperf.tables import F8, Timings
from pikv_runtime.profiles import Link

SMALL_BYTES = float(2**20)
"""Collectives change algorithm with size: messages up to this many bytes are fitted apart from larger ones."""
HELD_OUT = 5  # rows of every so many sizes are not fitted
FEWEST_ROWS = 6


def solve(columns: F8, seconds: F8) -> F8:
    """Non-negative x that brings `columns @ x` closest to `seconds` (n,), errors relative."""
    from scipy.optimize import nnls

    relative = columns / seconds[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1.0
    x: F8 = nnls(relative / scale, np.ones(len(seconds)))[0] / scale
    return x


def held_out(sizes: F8) -> NDArray[np.bool_]:
    """Rows that are not fitted, (n,): those of every fifth size. Rows of one size go together: they nearly repeat."""
    return np.isin(sizes, np.unique(sizes)[2::HELD_OUT])


def relative_error(columns: F8, x: F8, seconds: F8) -> float:
    """Median absolute relative error."""
    return float(np.median(np.abs(columns @ x / seconds - 1.0)))


def fit_links(timings: Timings) -> list[Link]:
    """Two lines, for small and for large messages, with their error on the rows held out.

    Raises:
        ValueError: fewer than six rows of small or of large messages.
    """
    links = []
    for limit, kept in ((SMALL_BYTES, timings.sizes <= SMALL_BYTES), (None, timings.sizes > SMALL_BYTES)):
        sizes, seconds = timings.sizes[kept], timings.seconds[kept]
        if len(sizes) < FEWEST_ROWS:
            what = f"{timings.operation} of {timings.ranks} ranks"
            raise ValueError(f"{what}: {len(sizes)} rows on one side of 1 MiB, at least {FEWEST_ROWS} are needed")
        out = held_out(sizes)
        columns = np.stack([np.ones(len(sizes)), sizes], axis=1)
        start, byte = x = solve(columns[~out], seconds[~out])
        error = relative_error(columns[out], x, seconds[out])
        links.append(Link(timings.operation, timings.ranks, float(start), float(byte), limit, error))
    return links


@dataclass(frozen=True)
class ScaleOut:
    """DeepEP over nodes: bytes to GPUs of the own node and of others cost differently, starts grow with nodes."""

    inside_byte_s: float
    """Seconds per byte that stays in the node."""
    outside_byte_s: float
    """Seconds per byte that leaves it."""
    starts_s: dict[tuple[str, int], float]
    """Start by operation and nodes."""
    errors: dict[tuple[str, int], float]
    """Median absolute relative error on the rows held out."""
    ranks_per_node: int

    def byte_s(self, nodes: int, slow: float = 1.0) -> float:
        """Seconds per byte where each rank sends as much to every other; `slow` stretches what leaves the node."""
        inside = self.ranks_per_node - 1
        outside = (nodes - 1) * self.ranks_per_node
        return (self.inside_byte_s * inside + slow * self.outside_byte_s * outside) / (inside + outside)

    def start_s(self, operation: str, nodes: int) -> float:
        """Fitted start, or (more nodes than were measured) a line in log2 of the nodes through those of several."""
        if (operation, nodes) in self.starts_s:
            return self.starts_s[operation, nodes]
        known = {n: s for (op, n), s in self.starts_s.items() if op == operation and n > 1}
        slope, level = np.polyfit(np.log2(list(known)), np.array(list(known.values())), 1)
        return float(level + max(0.0, slope) * np.log2(nodes))

    def link(self, operation: str, nodes: int, slow: float = 1.0) -> Link:
        """The link over `nodes` nodes; extrapolated where no such number was measured."""
        error = self.errors.get((operation, nodes))
        start, byte = self.start_s(operation, nodes), self.byte_s(nodes, slow)
        return Link(operation, nodes * self.ranks_per_node, start, byte, None, error, extrapolated=error is None)


def fit_scale_out(tables: Sequence[Timings], ranks_per_node: int) -> ScaleOut:
    """One bandwidth inside nodes and one between them for all tables; a start for each operation and node count."""
    keys = [(t.operation, t.nodes) for t in tables]
    rows, seconds, out, owner = [], [], [], []
    for number, t in enumerate(tables):
        inside = (ranks_per_node - 1) / (t.ranks - 1)
        block = np.zeros((len(t.sizes), len(tables) + 2))
        block[:, number] = 1.0
        block[:, -2], block[:, -1] = t.sizes * inside, t.sizes * (1.0 - inside)
        rows.append(block)
        seconds.append(t.seconds)
        out.append(held_out(t.sizes))
        owner.append(np.full(len(t.sizes), number))
    columns, times, mask, who = (np.concatenate(parts) for parts in (rows, seconds, out, owner))
    x = solve(columns[~mask], times[~mask])
    errors = {}
    for number, key in enumerate(keys):
        mine = mask & (who == number)
        errors[key] = relative_error(columns[mine], x, times[mine])
    starts = {key: float(x[number]) for number, key in enumerate(keys)}
    return ScaleOut(float(x[-2]), float(x[-1]), starts, errors, ranks_per_node)


def fit_slowdown(scale: ScaleOut, figures: Sequence[tuple[str, int, float, float]]) -> float:
    """How much slower the wire between nodes is beyond the tables: least relative squares over published figures.

    `figures`: (operation, nodes, bytes that leave a rank, seconds).
    """
    inside, outside = [], []
    for operation, nodes, size, seconds in figures:
        share = (scale.ranks_per_node - 1) / (nodes * scale.ranks_per_node - 1)
        fixed = scale.start_s(operation, nodes) + scale.inside_byte_s * size * share
        inside.append(1.0 - fixed / seconds)
        outside.append(scale.outside_byte_s * size * (1.0 - share) / seconds)
    return float(np.dot(inside, outside) / np.dot(outside, outside))
