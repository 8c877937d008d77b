"""From a family and a trace library to a stream of requests, bit for bit reproducible from the seed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.hashing import mix, to_hash_ids, to_uniform
from pikv_env.traces.library import TraceLibrary
from pikv_env.workloads.arrivals import Sessions, warp
from pikv_env.workloads.families import FAMILIES, Family
from pikv_runtime.requests import Request, RequestList

Rng = np.random.Generator
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
ServiceTime = Callable[[int, int], float]

PROBES = 2048  # draws with which the mean service time of a family's mix is estimated


def make_workload(
    family: Family | str,
    library: TraceLibrary,
    seed: int,
    horizon_s: float,
    load: float,
    service_s: ServiceTime,
) -> RequestList:
    """Draw one episode of a family.

    Args:
        family: A family, or the name of one in `FAMILIES`.
        library: Recorded contents; must hold the family's kinds.
        seed: Same seed and arguments, same workload.
        horizon_s: Arrivals lie in [0, horizon_s), seconds of model time.
        load: Share of compute offered where nothing is reused: the rate is load over mean service time.
        service_s: Seconds of exclusive compute for (prompt_tokens, output_tokens).

    Returns:
        Requests ordered by arrival, numbered from 0, with token ids where the library has them.
    """
    family = FAMILIES[family] if isinstance(family, str) else family
    if not load > 0:
        raise ValueError(f"load={load}: must be positive")
    missing = [kind for kind in family.kinds if kind not in library.families]
    if missing:
        raise ValueError(f"family {family.id!r} needs contents {missing}; the library has {list(library.families)}")
    draw = _Draw(family, _Groups.of(library, family.kinds), seed, horizon_s)
    service = _service_times(library, family.kinds, service_s)
    probes = draw.probe()
    times, rows, salts, owner = draw.requests(load / float(service[probes].mean()))
    classes = to_uniform(mix(draw.key, 4, owner)) < family.batch_share
    hash_ids = _hash_ids(library, family, rows, salts, draw.key)
    return RequestList(
        name=f"{family.id}-{seed}",
        horizon_s=horizon_s,
        requests=_requests(library, times, rows, classes, hash_ids),
        family=family.id,
        seed=seed,
    )


@dataclass(frozen=True)
class _Groups:
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
    def of(cls, library: TraceLibrary, kinds: tuple[str, ...]) -> _Groups:
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

    def longest(self) -> _Groups:
        """Only the groups with the most rows: a dialogue cut short has no turn to give."""
        if len(self.first) != 2:
            raise ValueError(f"sessions draw from 1 content kind, not {len(self.first) - 1}")
        whole = np.flatnonzero(self.count == self.count.max())
        return replace(self, start=self.start[whole], count=self.count[whole], first=np.array([0, len(whole)]))


@dataclass(frozen=True)
class _Draw:
    """The random choices of one episode. A copy of a document is a hash of (seed, slot, life), no state."""

    family: Family
    groups: _Groups
    seed: int
    horizon_s: float

    @property
    def key(self) -> Words:
        """One word that seeds every hash of the episode."""
        return mix(self.seed, zlib.crc32(self.family.id.encode()))

    def rng(self, stream: int) -> Rng:
        """An independent generator for one purpose."""
        return np.random.default_rng([self.seed, zlib.crc32(self.family.id.encode()), stream])

    def probe(self) -> Ints:
        """Library rows as the episode would draw them, to estimate the mean service time: (PROBES,)."""
        times = self.bend((np.arange(PROBES) + 0.5) / PROBES * self.horizon_s)
        if self.family.sharing == "session":
            groups, sessions = self.groups.longest(), self.sessions()
            rng = self.rng(3)
            turns = rng.integers(sessions.min_turns, sessions.max_turns + 1, PROBES)
            # A request is turn k with the probability that its session reaches k.
            turn = np.nonzero(np.arange(sessions.max_turns) < turns[:, None])[1]
            group = rng.integers(0, len(groups.start), len(turn))
            return groups.rows[groups.start[group] + turn]
        return self.documents(self.rng(3), times)[0]

    def bend(self, times: Floats) -> Floats:
        """Times with the rate of the family's phases."""
        if len(self.family.phases) == 1:
            return times
        return warp(times, self.edges(), np.array([p.rate for p in self.family.phases]), self.horizon_s)

    def edges(self) -> Floats:
        """Times at which phases begin, and the horizon: (phases + 1,)."""
        shares = np.cumsum([0.0] + [phase.share for phase in self.family.phases])
        return shares / shares[-1] * self.horizon_s

    def sessions(self) -> Sessions:
        """The family's session process, with no more turns than the recorded dialogues have."""
        process = self.family.arrivals
        assert isinstance(process, Sessions), "checked by Family"
        most = int(self.groups.count.max())
        return replace(process, min_turns=min(process.min_turns, most), max_turns=min(process.max_turns, most))

    def requests(self, rate_per_s: float) -> tuple[Floats, Ints, Words, Words]:
        """Times, library rows, salts of the shared prefix, and who decides the class; each (R,)."""
        if self.family.sharing == "session":
            groups = self.groups.longest()
            arrivals = self.sessions().draw(self.rng(1), rate_per_s, self.horizon_s)
            salts = mix(self.key, 1, arrivals.session)
            group = (to_uniform(mix(salts, 2)) * len(groups.start)).astype(np.int64)
            return arrivals.times, groups.rows[groups.start[group] + arrivals.turn], salts, salts
        times = self.bend(self.family.arrivals(self.rng(1), rate_per_s, self.horizon_s))
        rows, salts = self.documents(self.rng(2), times)
        return times, rows, salts, mix(self.key, 3, np.arange(len(times)))

    def documents(self, rng: Rng, times: Floats) -> tuple[Ints, Words]:
        """The library row and the salt of the live copy that each request asks about; both (R,)."""
        popularity = self.family.popularity
        kind = self.kinds_at(rng, times)
        weights = np.arange(1, popularity.instances + 1, dtype=np.float64) ** -popularity.zipf
        slot = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(len(times)))
        slot = np.minimum(slot, popularity.instances - 1)
        # Slots replace their document at different times; the new one inherits the popularity.
        age = times / popularity.lifetime_s + to_uniform(mix(self.key, 5, kind, slot))
        salts = mix(self.key, 6, kind, slot, np.floor(age).astype(np.int64))
        low, high = self.groups.first[kind], self.groups.first[kind + 1]
        group = low + (to_uniform(mix(salts, 7)) * (high - low)).astype(np.int64)
        question = (rng.random(len(times)) * self.groups.count[group]).astype(np.int64)
        return self.groups.rows[self.groups.start[group] + question], salts

    def kinds_at(self, rng: Rng, times: Floats) -> Ints:
        """The content kind of each request by the mix of its phase, (R,)."""
        kinds = self.family.kinds
        mixes = np.array([[phase.kinds.get(kind, 0.0) for kind in kinds] for phase in self.family.phases])
        cumulative = np.cumsum(mixes / mixes.sum(axis=1, keepdims=True), axis=1)
        phase = np.clip(np.searchsorted(self.edges(), times, side="right") - 1, 0, len(mixes) - 1)
        kind = (rng.random(len(times))[:, None] >= cumulative[phase]).sum(axis=1)
        return np.minimum(kind, len(kinds) - 1)


def _service_times(library: TraceLibrary, kinds: tuple[str, ...], service_s: ServiceTime) -> Floats:
    """Seconds of exclusive compute of each library row of some kinds, (C,)."""
    seconds = np.zeros(len(library))
    for row in np.concatenate([library.rows_of(kind) for kind in kinds]).tolist():
        seconds[row] = service_s(int(library.prompt_tokens[row]), int(library.output_tokens[row]))
        if not 0 < seconds[row] < np.inf:
            raise ValueError(f"service_s of content {row} is {seconds[row]}: must be positive and finite")
    return seconds


def _hash_ids(library: TraceLibrary, family: Family, rows: Ints, salts: Words, key: Words) -> NDArray[np.int64]:
    """Block ids (R, PB), salted by copy or session as far as its prefix is shared, by the request beyond."""
    own = mix(key, 8, np.arange(len(rows)))
    shared = {
        "document": library.shared_tokens,
        "session": library.prompt_tokens,
        "none": np.zeros(len(library), np.int32),
    }[family.sharing]
    blocks = (shared // library.page_tokens)[rows]
    inside = np.arange(library.chain.shape[1]) < blocks[:, None]
    return to_hash_ids(mix(library.chain[rows], np.where(inside, salts[:, None], own[:, None])))


def _requests(
    library: TraceLibrary, times: Floats, rows: Ints, classes: NDArray[np.bool_], hash_ids: NDArray[np.int64]
) -> tuple[Request, ...]:
    """The requests; token ids are read-only views of the library."""
    prompts, outputs, blocks = (
        a[rows].tolist() for a in (library.prompt_tokens, library.output_tokens, library.num_blocks)
    )
    hash_ids.flags.writeable = False
    requests = []
    for i, (time, row, one) in enumerate(zip(times.tolist(), rows.tolist(), classes.tolist(), strict=True)):
        prompt, end = prompts[i], prompts[i] + outputs[i]
        ids = None if library.token_ids is None else library.token_ids[row]
        requests.append(
            Request(
                request_id=i,
                arrival_s=time,
                prompt_tokens=prompt,
                output_tokens=outputs[i],
                hash_ids=hash_ids[i, : blocks[i]],
                class_id=int(one),
                content=row,
                prompt_ids=None if ids is None else ids[:prompt],
                exact_ids=None if ids is None else ids[prompt:end],
            )
        )
    return tuple(requests)
