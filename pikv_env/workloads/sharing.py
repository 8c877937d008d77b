"""Sharing rules: which contents requests have, and how far each shares its blocks with others.

A rule is called twice: `probe` returns library rows as the episode would draw them, from which the mean service
time and so the rate follows; `draw` returns the episode. Equal block ids always mean equal text from the start:
the recorded text of a library's rows (`document`, `session`, `none`), or a notional text of the simulation, whose
attention is that of a recorded prompt of its length (`tenant`, `growing`, `trace`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from pikv_env.traces.hashing import mix, to_uniform
from pikv_env.workloads.arrivals import FlashCrowd
from pikv_env.workloads.draw import PROBES, Drawn, Episode, Floats, Ints, Rng, Words, zipf_ranks
from pikv_env.workloads.growing import Growing
from pikv_env.workloads.replayed import Replayed
from pikv_env.workloads.sessions import Sessions
from pikv_env.workloads.tenants import TenantPrefix
from pikv_runtime.registry import Registry


class SharingRule(Protocol):
    """How a family's requests get contents and block ids."""

    def probe(self, episode: Episode) -> Ints:
        """Library rows as the episode would draw them, any number."""
        ...

    def draw(self, episode: Episode, rate_per_s: float) -> Drawn:
        """The requests of the episode at a mean rate."""
        ...


class Documents:
    """Questions about live copies of documents; blocks wholly inside a document belong to its copy."""

    def probe(self, episode: Episode) -> Ints:
        """See `SharingRule`."""
        times = episode.probe_times()
        return _asked(episode, episode.rng(3), times, np.full(len(times), -1))[0]

    def draw(self, episode: Episode, rate_per_s: float) -> Drawn:
        """See `SharingRule`."""
        times, crowd = _arrivals(episode, rate_per_s)
        rows, salts = _asked(episode, episode.rng(2), times, crowd)
        return Drawn(times, rows, episode.requests(len(times)), self.ids(episode, rows, salts))

    def ids(self, episode: Episode, rows: Ints, salts: Words) -> Ints:
        """Block ids, shared as far as the document goes."""
        library = episode.library
        return episode.recorded_ids(rows, library.shared_tokens[rows] // library.page_tokens, salts)


class Unshared(Documents):
    """The same contents, and no block that two requests have."""

    def ids(self, episode: Episode, rows: Ints, salts: Words) -> Ints:
        """Block ids of each request alone."""
        return episode.recorded_ids(rows, np.zeros(len(rows), np.int64), salts)


class Dialogues:
    """Turns of recorded dialogues; blocks wholly inside a prompt belong to the session."""

    def probe(self, episode: Episode) -> Ints:
        """See `SharingRule`."""
        groups, sessions = episode.groups.longest(), _capped(episode)
        rng = episode.rng(3)
        turns = rng.integers(sessions.min_turns, sessions.max_turns + 1, PROBES)
        # A request is turn k with the probability that its session reaches k.
        turn = np.nonzero(np.arange(sessions.max_turns) < turns[:, None])[1]
        group = rng.integers(0, len(groups.start), len(turn))
        return groups.rows[groups.start[group] + turn]

    def draw(self, episode: Episode, rate_per_s: float) -> Drawn:
        """See `SharingRule`."""
        groups, library = episode.groups.longest(), episode.library
        arrivals = _capped(episode).draw(episode.rng(1), rate_per_s, episode.horizon_s)
        salts = mix(episode.key, 1, arrivals.session)
        group = (to_uniform(mix(salts, 2)) * len(groups.start)).astype(np.int64)
        rows = groups.rows[groups.start[group] + arrivals.turn]
        ids = episode.recorded_ids(rows, library.prompt_tokens[rows] // library.page_tokens, salts)
        return Drawn(arrivals.times, rows, salts, ids)


def _capped(episode: Episode) -> Sessions:
    """The family's session process, with no more turns than the recorded dialogues have."""
    process = episode.family.arrivals
    assert isinstance(process, Sessions), "checked by Family"
    most = int(episode.groups.count.max())
    return replace(process, min_turns=min(process.min_turns, most), max_turns=min(process.max_turns, most))


def _arrivals(episode: Episode, rate_per_s: float) -> tuple[Floats, Ints]:
    """Times, and the crowd that each request belongs to (-1: none); both (R,)."""
    process = episode.family.arrivals
    if isinstance(process, FlashCrowd):
        times, crowd = process.draw(episode.rng(1), rate_per_s, episode.horizon_s)
        return episode.bend(times), crowd
    times = episode.single_arrivals(rate_per_s)
    return times, np.full(len(times), -1)


def _asked(episode: Episode, rng: Rng, times: Floats, crowd: Ints) -> tuple[Ints, Words]:
    """The library row and the salt of the live copy that each request asks about; both (R,)."""
    popularity, groups, key = episode.family.popularity, episode.groups, episode.key
    kind = episode.kinds_at(rng, times)
    slot = _dealt(episode, times, zipf_ranks(rng, len(times), popularity.zipf, popularity.instances))
    # Slots replace their document at different times; the new one inherits the popularity.
    age = times / popularity.lifetime_s + to_uniform(mix(key, 5, kind, slot))
    life = np.floor(age).astype(np.int64)
    # A crowd asks about one document, a new one that does not change.
    together = crowd >= 0
    hot_kind = (to_uniform(mix(key, 10, crowd)) * len(episode.family.kinds)).astype(np.int64)
    kind = np.where(together, hot_kind, kind)
    salts = np.where(together, mix(key, 11, crowd), mix(key, 6, kind, slot, life))
    low, high = groups.first[kind], groups.first[kind + 1]
    group = low + (to_uniform(mix(salts, 7)) * (high - low)).astype(np.int64)
    question = (rng.random(len(times)) * groups.count[group]).astype(np.int64)
    return groups.rows[groups.start[group] + question], salts


def _dealt(episode: Episode, times: Floats, rank: Ints) -> Ints:
    """The slot that has each rank at each time: ranks are dealt anew at every reshuffle, (R,)."""
    popularity = episode.family.popularity
    if not popularity.reshuffles:
        return rank
    rng = episode.rng(5)
    parts = popularity.reshuffles + 1
    moments = (np.arange(1, parts) + rng.uniform(-0.25, 0.25, parts - 1)) * episode.horizon_s / parts
    deals = np.stack([rng.permutation(popularity.instances) for _ in range(parts)])
    return deals[np.searchsorted(moments, times, side="right"), rank]


SHARING: Registry[SharingRule] = Registry("sharing")
SHARING.add("document", Documents())
SHARING.add("none", Unshared())
SHARING.add("session", Dialogues())
SHARING.add("tenant", TenantPrefix())
SHARING.add("growing", Growing())
SHARING.add("trace", Replayed())
