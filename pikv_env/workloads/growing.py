"""The sharing rule `growing`: sessions whose prompt grows by their own answers and by what comes between them.

A session begins with its tenant's prefix. Each turn's prompt is the one before, the answer to it, and something new
(`Growth`): a question, or the output of a tool. Where no recorded prompt is long enough any more the session is
compacted, as agents do: it starts again behind the tenant's prefix, and what came before is not shared any longer.

    turn 1  |tenant|······|answer|
    turn 2  |tenant|······|answer|·········|answer|          blocks of one tape, found by the next turn
    turn 3  |tenant|······|answer|·········|answer|····|answer|
    turn 4  |tenant|····|answer|                             compacted: a new tape
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pikv_env.traces.hashing import mix
from pikv_env.workloads.draw import PROBES, Drawn, Episode, Ints, Rng, zipf_ranks
from pikv_env.workloads.sessions import Sessions
from pikv_env.workloads.tenants import prefixes

CHOICE = 3
"""A turn has one of the so many shortest prompts that are long enough: variety at little excess length."""


class Walk(NamedTuple):
    """S sessions of T turns: library rows (S, T), number of the tape (S, T), tenant (S,), its prefix in blocks (S,)."""

    rows: Ints
    tape: Ints
    tenant: Ints
    prefix: Ints


class Growing:
    """Growing sessions of Zipf-distributed tenants; the text is notional, see `sharing.py`."""

    def probe(self, episode: Episode) -> Ints:
        """Library rows as the episode would draw them."""
        process, rng = _process(episode), episode.rng(3)
        turns = rng.integers(process.min_turns, process.max_turns + 1, PROBES // 4)
        rows = walk(episode, rng, len(turns), process.max_turns).rows
        return rows[np.arange(process.max_turns) < turns[:, None]]

    def draw(self, episode: Episode, rate_per_s: float) -> Drawn:
        """The requests of the episode."""
        process, library = _process(episode), episode.library
        times, session, turn = process.draw(episode.rng(1), rate_per_s, episode.horizon_s)
        found = walk(episode, episode.rng(2), int(session.max(initial=-1)) + 1, process.max_turns)
        rows, tenant = found.rows[session, turn], found.tenant[session]
        owner = mix(episode.key, 1, session)
        tape = mix(owner, 13, found.tape[session, turn])
        ids = episode.notional_ids(
            (found.prefix[session], prefixes(episode, tenant)[1]),
            (library.num_blocks[rows].astype(np.int64), tape),
            own=episode.requests(len(times)),
        )
        return Drawn(times, rows, owner, ids)


def _process(episode: Episode) -> Sessions:
    process = episode.family.arrivals
    assert isinstance(process, Sessions), "checked by Family"
    return process


def walk(episode: Episode, rng: Rng, sessions: int, turns: int) -> Walk:
    """Let sessions grow: every turn's prompt holds the prompt and the answer before it, or begins a new tape."""
    library, family = episode.library, episode.family
    order = np.concatenate([library.rows_of(kind) for kind in family.kinds])
    order = order[np.argsort(library.prompt_tokens[order], kind="stable")]
    sizes = library.prompt_tokens[order].astype(np.float64)
    tenant = zipf_ranks(rng, sessions, family.tenants.zipf, family.tenants.count)
    # A tape needs room to grow in: a prefix takes at most half of the longest prompt.
    prefix = np.minimum(prefixes(episode, tenant)[0], int(sizes[-1]) // 2 // library.page_tokens)
    rows, tape = np.zeros((2, sessions, turns), np.int64)
    start = prefix * library.page_tokens
    held, number = start.astype(np.float64), np.zeros(sessions, np.int64)
    for turn in range(turns):
        added = np.maximum(family.growth.median_tokens * rng.lognormal(0, family.growth.sigma, sessions), 1)
        full = held + added > sizes[-1]
        number += full
        first = np.searchsorted(sizes, np.minimum(np.where(full, start, held) + added, sizes[-1]))
        room = np.minimum(CHOICE, len(order) - first)
        rows[:, turn] = order[first + (rng.random(sessions) * room).astype(np.int64)]
        tape[:, turn] = number
        held = library.total_tokens[rows[:, turn]].astype(np.float64)
    return Walk(rows, tape, tenant, prefix)
