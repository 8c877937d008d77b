"""A timeline: when one run on the ledger admitted, decoded and finished whom, iteration by iteration.

The oracle's problem holds it fixed: what is decided is only what becomes of pages and blocks meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pikv_env.batch import TraceBatch
from pikv_env.pool import Prepared, WorkloadPool
from pikv_runtime.block_rules import orders_of
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.ledger import copy_requests
from pikv_runtime.ledger.commit import advance, commit
from pikv_runtime.ledger.drive import Bank, next_event_s, put_into_force, replay_signals, stage
from pikv_runtime.ledger.pricing import price
from pikv_runtime.ledger.schedule import plan
from pikv_runtime.ledger.setup import clear, close
from pikv_runtime.ledger.state import F8, I8, NO_CAP, Ledger, Status, Tally
from pikv_runtime.ledger.telemetry import write_telemetry
from pikv_runtime.policy import Policy
from pikv_runtime.requests import distinct_blocks


@dataclass(frozen=True)
class Visit:
    """One stay of a request in a slot: all of it, unless the request is preempted. Numbers of iterations."""

    request: int
    admitted: int
    decoding: int
    """First iteration that decodes; `ended` where there is none."""
    ended: int
    """First iteration without it."""
    owner: int
    hits: int
    """Leading blocks that were found in the cache."""
    target: int
    """Tokens to prefill."""
    tokens: I8
    """(ended - admitted,) tokens stored before each iteration."""


@dataclass(frozen=True)
class Timeline:
    """K iterations of a run, and who ran in them."""

    start_s: F8  # (K,)
    end_s: F8  # (K,)
    rate: F8  # (K,) latency charge per second of everybody in the system
    link_s: F8  # (K,) collectives and query rows
    live_bytes: F8  # (K,) held by running requests, all ranks
    visits: list[Visit]
    latency: float
    """Latency charge of the whole run, before L_U."""
    unserved: I8
    """(N,) decode steps that a request was never given."""
    tally: F8
    """Of the run, (len(Tally),)."""


class _Log:
    """Iterations as they happen."""

    def __init__(self) -> None:
        self.numbers: list[tuple[float, ...]] = []
        self.requests: list[I8] = []
        self.tokens: list[I8] = []
        self.facts: list[tuple[int, int, int, int]] = []  # iteration, slot, owner, target
        self._last: I8 | None = None

    def planned(self, s: Ledger, i: int) -> None:
        """The iteration that the ledger has just planned."""
        requests = np.array(s.slot_request[i], np.int64)
        tokens = np.where(requests >= 0, np.array(s.slot_tokens[i], np.int64), -1)
        self.requests.append(requests)
        self.tokens.append(tokens)
        fresh = np.ones(len(requests), np.bool_)
        if self._last is not None:
            fresh = (requests != self._last) | (tokens < self.tokens[-2])
        for r in np.flatnonzero(fresh & (requests >= 0)):
            self.facts.append((len(self.requests) - 1, int(r), int(s.slot_owner[i, r]), int(s.slot_target[i, r])))
        self._last = requests

    def visits(self, page_tokens: int) -> list[Visit]:
        """Stays in slots, in order of admission."""
        requests, tokens = np.array(self.requests), np.array(self.tokens)
        found = []
        begins: dict[int, list[tuple[int, int, int]]] = {}
        for k, r, owner, target in self.facts:
            begins.setdefault(r, []).append((k, owner, target))
        for r, entries in begins.items():
            for n, (k, owner, target) in enumerate(entries):
                until = entries[n + 1][0] if n + 1 < len(entries) else len(requests)
                q = int(requests[k, r])
                away = np.flatnonzero(requests[k:until, r] != q)
                ended = k + int(away[0]) if len(away) else until
                stored = tokens[k:ended, r].astype(np.int64)
                decoding = k + int(np.searchsorted(stored, target))
                hits = int(stored[0]) // page_tokens
                found.append(Visit(q, k, decoding, ended, owner, hits, target, stored))
        return sorted(found, key=lambda visit: (visit.admitted, visit.request))


def _iterate(s: Ledger, i: int, bank: Bank, end_s: float, log: _Log) -> None:
    """Run lane `i` until `end_s` or to the end of its work, one iteration at a time: what `run_interval` does."""
    while s.clock_s[i] < end_s and s.unfinished[i] > 0:
        put_into_force(s, i)
        if plan(s, i) == 0:
            advance(s, i, max(1e-9, next_event_s(s, i, end_s) - float(s.clock_s[i])))
            continue
        log.planned(s, i)
        rate = float(s.waiting_rate[i] + s.decode_rate[i])
        replay_signals(s, i, bank)
        start, link = float(s.clock_s[i]), float(s.tally[i, Tally.LINK_S])
        seconds = price(s, i)  # before `commit`, which may seal pages: their way home is not this iteration's
        link, live = float(s.tally[i, Tally.LINK_S]) - link, float((s.bytes_rank[i] - s.cached_bytes[i]).sum())
        commit(s, i, seconds)
        log.numbers.append((start, float(s.clock_s[i]), rate, link, live))


def _finish(s: Ledger, i: int, prepared: Prepared, log: _Log) -> Timeline:
    close(s, i, prepared.reference.charges, prepared.observations)
    start, end, rate, link, live = (np.ascontiguousarray(c) for c in np.array(log.numbers).reshape(-1, 5).T)
    n = int(s.num_requests[i])
    given = np.where(s.req_status[i, :n] == Status.DONE, s.req_output[i, :n], s.req_generated[i, :n])
    return Timeline(
        start_s=start,
        end_s=end,
        rate=rate,
        link_s=link,
        live_bytes=live,
        visits=log.visits(int(s.page_tokens)),
        latency=float(s.tally[i, Tally.LATENCY_CHARGE]),
        unserved=np.maximum(0, np.array(s.req_output[i, :n], np.int64) - np.maximum(given, 1)),
        tally=np.array(s.tally[i]),
    )


def reference_timeline(pool: WorkloadPool, workload: int) -> Timeline:
    """Of U, the uncapped exact run: everybody is admitted as soon as a slot is free, every prefix is found.

    The iterations are those of `reference_run`, and so is the latency.
    """
    prepared = pool.prepared[workload]
    requests = prepared.workload.requests
    slots = distinct_blocks(requests) + pool.config.runtime.slots * pool.pages + 1
    scratch = pool.ledger(1, len(requests), slots)
    clear(scratch, 0)
    _copy(scratch, pool, workload)
    scratch.cap_bytes[0] = NO_CAP
    plain = pool.store.codec_bytes - (pool.store.ghost_bytes if pool.store.sparse == 1 else 0)
    exact = scratch._replace(sparse=0, codec_bytes=plain)
    log = _Log()
    _iterate(exact, 0, pool.bank, math.inf, log)
    return _finish(exact, 0, prepared, log)


def _copy(target: Ledger, pool: WorkloadPool, workload: int) -> None:
    """Load a workload of the pool into a ledger that may have less room than the pool's."""
    n = target.req_arrival_s.shape[1]
    names = {name for name in target._fields if name.startswith("req_")}
    narrow = pool.store._replace(**{name: getattr(pool.store, name)[:, :n] for name in names})
    copy_requests(target, 0, narrow, workload)


def played_timeline(
    pool: WorkloadPool, workload: int, pressure: float, policy: Policy, lambdas: tuple[float, float] | None = None
) -> tuple[Timeline, Any]:
    """Of one policy's capped run, under its block rule and page order, and that run's `Score`."""
    batch = TraceBatch(pool.library, pool.config, 1, 0, pool)
    orders = orders_of(policy, pool.config.runtime.block_rule)
    batch.reset_lane(0, workload=workload, pressure=pressure, lambdas=lambdas, orders=orders)
    s, log = batch.state, _Log()
    told = Telemetry(batch.groups[0], batch.globals[0])
    asked = Control(batch.control_groups[0], batch.control_globals[0])
    while s.unfinished[0] > 0 and s.clock_s[0] < batch.limit_s[0]:
        policy.decide(told, asked)
        _play_interval(batch, log)
    timeline = _finish(s, 0, batch.prepared(0), log)
    return timeline, batch.score(0)


def _play_interval(batch: TraceBatch, log: _Log) -> None:
    s = batch.state
    batch._legalise()
    stage(s, 0, batch.control_groups[0], batch.control_globals[0])
    _iterate(s, 0, batch.bank, min(float(s.interval_end_s[0]), float(batch.limit_s[0])), log)
    while s.interval_end_s[0] <= s.clock_s[0]:
        s.interval_end_s[0] += s.interval_s[0]
    write_telemetry(s, 0, batch.groups[0], batch.globals[0])
