"""What the sharing rules draw with: one episode's generators and hashes, and what they return."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.hashing import mix, to_hash_ids
from pikv_env.traces.library import TraceLibrary
from pikv_env.workloads.arrivals import warp
from pikv_env.workloads.families import Family
from pikv_env.workloads.groups import Groups

Rng = np.random.Generator
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

PROBES = 2048  # draws with which the mean service time of a family's mix is estimated


@dataclass(frozen=True)
class Drawn:
    """Requests of an episode in the order of time, R of them."""

    times: Floats
    """Arrivals, seconds, (R,)."""
    rows: Ints
    """Library rows, (R,)."""
    owner: Words
    """Who decides the class: the request, or its session, (R,)."""
    hash_ids: NDArray[np.int64]
    """Ids of the blocks, (R, PB); beyond a request's blocks without meaning."""


@dataclass(frozen=True)
class Episode:
    """One episode of a family: everything random in it follows from the family's seed and the episode's."""

    family: Family
    library: TraceLibrary
    seed: int
    horizon_s: float

    @cached_property
    def groups(self) -> Groups:
        """Rows of the family's kinds."""
        return Groups.of(self.library, self.family.kinds)

    @cached_property
    def key(self) -> Words:
        """One word that seeds every hash of the episode."""
        return mix(self.seed, self.family.seed)

    def rng(self, stream: int) -> Rng:
        """An independent generator for one purpose."""
        return np.random.default_rng([self.seed, self.family.seed, stream])

    def single_arrivals(self, rate_per_s: float) -> Floats:
        """Times of requests without sessions, with the rate of the family's phases."""
        return self.bend(self.family.arrivals(self.rng(1), rate_per_s, self.horizon_s))

    def probe_times(self) -> Floats:
        """Times evenly spread over arrivals, at which contents are drawn to estimate their mean service time."""
        return self.bend((np.arange(PROBES) + 0.5) / PROBES * self.horizon_s)

    def bend(self, times: Floats) -> Floats:
        """Times with the rate of the family's phases."""
        if len(self.family.phases) == 1:
            return times
        return warp(times, self.edges(), np.array([p.rate for p in self.family.phases]), self.horizon_s)

    def edges(self) -> Floats:
        """Times at which phases begin, and the horizon: (phases + 1,)."""
        shares = np.cumsum([0.0] + [phase.share for phase in self.family.phases])
        return shares / shares[-1] * self.horizon_s

    def kinds_at(self, rng: Rng, times: Floats) -> Ints:
        """The content kind of each request by the mix of its phase, (R,)."""
        kinds = self.family.kinds
        mixes = np.array([[phase.kinds.get(kind, 0.0) for kind in kinds] for phase in self.family.phases])
        cumulative = np.cumsum(mixes / mixes.sum(axis=1, keepdims=True), axis=1)
        phase = np.clip(np.searchsorted(self.edges(), times, side="right") - 1, 0, len(mixes) - 1)
        kind = (rng.random(len(times))[:, None] >= cumulative[phase]).sum(axis=1)
        return np.minimum(kind, len(kinds) - 1)

    def requests(self, count: int) -> Words:
        """One word for each of `count` requests, (count,)."""
        return mix(self.key, 3, np.arange(count))

    def recorded_ids(self, rows: Ints, blocks: NDArray[Any], salts: Words) -> Ints:
        """Block ids (R, PB) of recorded text: the first `blocks` are shared under `salts`, the rest with nobody."""
        own = mix(self.key, 8, np.arange(len(rows)))
        inside = np.arange(self.library.chain.shape[1]) < blocks[:, None]
        return to_hash_ids(mix(self.library.chain[rows], np.where(inside, salts[:, None], own[:, None])))

    def notional_ids(self, *spans: tuple[Ints, Words], own: Words) -> NDArray[np.int64]:
        """Block ids (R, PB) of notional text: one span after the other up to its end, then the request's own.

        Args:
            *spans: Ends in blocks (R,), not falling from span to span, and salts (R,).
            own: Salts of what nobody shares, (R,).
        """
        j = np.arange(self.library.chain.shape[1])
        salts = np.broadcast_to(own[:, None], (len(own), len(j)))
        for end, salt in reversed(spans):
            salts = np.where(j < end[:, None], salt[:, None], salts)
        return to_hash_ids(mix(salts, 9, j))


def zipf_ranks(rng: Rng, count: int, exponent: float, ranks: int) -> Ints:
    """`count` draws of a rank 0..ranks - 1, the k-th in proportion to (k + 1) ** -exponent."""
    weights = np.arange(1, ranks + 1, dtype=np.float64) ** -exponent
    rank = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(count))
    return np.minimum(rank, ranks - 1)
