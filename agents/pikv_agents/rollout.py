"""Running policies over episodes of the trace environment: outcomes, counters and timelines.

A `Suite` prepares each workload once, by (family, seed), and remembers the outcomes of named heuristics, so that
headroom table and evaluation share what both need.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_agents.levers import Levers
from pikv_agents.timeline_recorder import TimelineRecorder
from pikv_env.batch import TraceBatch
from pikv_env.config import EnvConfig
from pikv_env.episode import costs
from pikv_env.episode_record import EpisodeRecord, EpisodeRecorder
from pikv_env.pool import WorkloadPool
from pikv_env.record_wrapper import write_record
from pikv_env.suites import reached
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.block_rules import orders_of
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.control_views import ControlView, observe
from pikv_runtime.controllers import make_policy
from pikv_runtime.ledger.state import Tally
from pikv_runtime.objective import Score
from pikv_runtime.policy import Policy

Watcher = Callable[[int, list[int], NDArray[np.float64]], None]

MOST_LANES = 16
"""Lanes of one batch: bounds memory; outcomes do not depend on it."""
EVALUATION_SEEDS = 1_000_000
"""Added to workload seeds, so that no small training seed draws an evaluation workload."""


@dataclass(frozen=True)
class Episode:
    """One workload under one cap."""

    family: str
    seed: int
    pressure: float


@dataclass(frozen=True)
class Job:
    """One lane's work: a policy on a workload of the batch's pool."""

    policy: Policy
    workload: int = 0
    pressure: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What an episode came to."""

    score: Score
    worst_request: float
    """Largest mean fidelity loss of an audited request, over the observations due to it."""
    counters: dict[str, float]
    timeline: dict[str, Any] | None = None

    def costs(self) -> dict[str, float]:
        """J and its parts under the names of `evaluate --json`."""
        s = self.score
        return {"J": s.J, "latency": s.latency, "memory": s.memory, "fidelity": s.fidelity}


class Learned:
    """A Stable-Baselines3 model as a policy: deterministic prediction, read by a control view."""

    name = "learned"

    def __init__(self, model: Any, view: ControlView, levers: Levers | None = None) -> None:
        self.model, self.view, self.levers = model, view, levers

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        out = out if out is not None else Control.zeros(len(telemetry.groups))
        groups, globals_ = telemetry.groups[None], telemetry.globals[None]
        actions, _ = self.model.predict(observe(groups, globals_, view=self.view.name), deterministic=True)
        if self.levers is not None:
            actions = self.levers.expand(actions)
        self.view.decode(actions, groups, globals_, out.groups[None], out.globals[None])
        return out


def run_jobs(
    batch: TraceBatch,
    jobs: Sequence[Job],
    lambdas: tuple[float, float] | None = None,
    timeline: bool = False,
    watch: Watcher | None = None,
    keep: Callable[[int, EpisodeRecord], None] | None = None,
) -> list[Outcome]:
    """Run each job in a lane of its own, `batch.num_envs` at a time; lanes do not influence one another.

    `lambdas` are drawn from the batch's config if not given. `watch` is called after every step with the number of
    the job in lane 0, the lanes that took the step, and the rewards of all lanes. `keep` is called with the number
    and the record of every job.
    """
    outcomes: list[Outcome] = []
    for start in range(0, len(jobs), batch.num_envs):
        part = jobs[start : start + batch.num_envs]
        outcomes += _run_chunk(
            batch, part, lambdas, timeline, watch and partial(watch, start), keep and _from(start, keep)
        )
    return outcomes


def _from(start: int, keep: Callable[[int, EpisodeRecord], None]) -> Callable[[int, EpisodeRecord], None]:
    return lambda i, record: keep(start + i, record)


def _run_chunk(
    batch: TraceBatch,
    jobs: Sequence[Job],
    lambdas: tuple[float, float] | None,
    timeline: bool,
    watch: Callable[[list[int], NDArray[np.float64]], None] | None,
    keep: Callable[[int, EpisodeRecord], None] | None,
) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    for i, job in enumerate(jobs):
        orders = orders_of(job.policy, batch.config.runtime.block_rule)
        batch.reset_lane(i, workload=job.workload, pressure=job.pressure, lambdas=lambdas, orders=orders)
    batch.done[len(jobs) :] = True  # spare lanes rest
    told = [Telemetry(batch.groups[i], batch.globals[i]) for i in range(len(jobs))]
    asked = [Control(batch.control_groups[i], batch.control_globals[i]) for i in range(len(jobs))]
    recorders = [TimelineRecorder() for _ in jobs] if timeline else []
    episodes = [EpisodeRecorder(batch, i, _name(job.policy)) for i, job in enumerate(jobs)] if keep else []
    seconds, decisions = np.zeros(len(jobs)), np.zeros(len(jobs), np.int64)
    while len(found) < len(jobs):
        running = [i for i in range(len(jobs)) if i not in found]
        for i in running:
            begin = time.perf_counter()
            jobs[i].policy.decide(told[i], asked[i])
            seconds[i] += time.perf_counter() - begin
            decisions[i] += 1
        rewards = batch.step()
        if watch:
            watch(running, rewards)
        for i in running:
            if timeline:
                recorders[i].add(batch, i)
            if keep:
                episodes[i].add()
            if batch.done[i]:
                decided = {"decision_us": 1e6 * seconds[i] / decisions[i], "decisions": float(decisions[i])}
                seen = recorders[i].timeline(_name(jobs[i].policy)) if timeline else None
                found[i] = _outcome(batch, i, decided, seen)
                if keep:
                    keep(i, episodes[i].record())
    return [found[i] for i in range(len(jobs))]


def _name(policy: Policy) -> str:
    return getattr(policy, "name", "policy")


def _outcome(batch: TraceBatch, i: int, decided: dict[str, float], timeline: dict[str, Any] | None) -> Outcome:
    s, tally = batch.state, batch.state.tally[i]
    worst = costs(batch, i).worst.loss
    counters = {
        "hit_rate": float(tally[Tally.HIT_TOKENS] / max(1.0, tally[Tally.PROMPT_TOKENS])),
        "evicted_pages": float(tally[Tally.EVICTED_PAGES]),
        "evicted_blocks": float(tally[Tally.EVICTED_BLOCKS]),
        "preemptions": float(tally[Tally.PREEMPTIONS]),
        "conflicts": float(tally[Tally.CONFLICTS]),
        "vetoes": float(tally[Tally.VETOES] / max(1.0, tally[Tally.ASKED])),
        "unfinished": float(s.unfinished[i]),
        "pressure_reached": batch.reached_pressure(i),
    }
    return Outcome(batch.score(i), worst, counters | decided, timeline)


class Suite:
    """Workloads by (family, seed) under one environment configuration, and what heuristics made of them.

    Args:
        library: Recorded traces.
        config: Environment; its families, workloads and pressure are replaced by each episode's.
        threads: Lanes are stepped by so many threads; outcomes do not depend on it.
        progress: Called with the number of episodes that were finished.
        records: Folder for an `EpisodeRecord` of every episode that is played; None: none are written.
    """

    def __init__(
        self,
        library: TraceLibrary,
        config: EnvConfig,
        threads: int = 1,
        progress: Callable[[int], None] | None = None,
        records: Path | None = None,
    ) -> None:
        self.library, self.config, self.threads, self.progress = library, config, threads, progress
        self.records = records
        self.lambdas = tuple(float(np.sqrt(a * b)) for a, b in (config.lambda1, config.lambda2))
        self._pools: dict[tuple[str, int], WorkloadPool] = {}
        self._known: dict[tuple[str, Episode], Outcome] = {}

    def pool(self, family: str, seed: int) -> WorkloadPool:
        """The pool of the one workload (family, seed)."""
        if (family, seed) not in self._pools:
            config = replace(self.config, families=(family,), workloads=1)
            self._pools[family, seed] = WorkloadPool(self.library, config, EVALUATION_SEEDS + seed)
        return self._pools[family, seed]

    def batch(self, family: str, seed: int, lanes: int) -> TraceBatch:
        """A batch of `lanes` lanes for the workload (family, seed)."""
        pool = self.pool(family, seed)
        return TraceBatch(self.library, pool.config, lanes, seed, pool, min(self.threads, lanes))

    def known(self, spec: str, episode: Episode) -> Outcome | None:
        """What a heuristic came to, if it was played there."""
        return self._known.get((spec, episode))

    def remember(self, spec: str, episode: Episode, outcome: Outcome) -> None:
        """Keep what a heuristic came to."""
        self._known[spec, episode] = outcome

    def run(
        self, policy: str | Callable[[], Policy], episodes: Sequence[Episode], timeline: bool = False
    ) -> list[Outcome]:
        """One policy, a heuristic's spec or a maker of fresh policies, on each of `episodes`."""
        return self.run_all({"": policy}, episodes, timeline)[""]

    def run_all(
        self,
        policies: dict[str, str | Callable[[], Policy]],
        episodes: Sequence[Episode],
        timeline: bool = False,
    ) -> dict[str, list[Outcome]]:
        """Every policy on every episode; a maker is called once per episode, so that no state is carried over."""
        found: dict[tuple[str, Episode], Outcome] = {}
        for family, seed in dict.fromkeys((e.family, e.seed) for e in episodes):
            todo = []
            for name, policy in policies.items():
                for episode in dict.fromkeys(episodes):
                    known = self._known.get((policy, episode)) if isinstance(policy, str) else None
                    if known and not (timeline and known.timeline is None):
                        found[name, episode] = known
                    elif (episode.family, episode.seed) == (family, seed):
                        todo.append((name, policy, episode))
            for key, outcome in self._play(family, seed, todo, timeline):
                found[key] = outcome
        return {name: [found[name, episode] for episode in episodes] for name in policies}

    def _play(
        self, family: str, seed: int, todo: list[tuple[str, Any, Episode]], timeline: bool
    ) -> Iterable[tuple[tuple[str, Episode], Outcome]]:
        unique = {(p, e) if isinstance(p, str) else (n, e): (p, e) for n, p, e in todo}
        if not unique:
            return
        keys = list(unique)
        done: dict[tuple[str, Episode], Outcome] = {}
        batch = self.batch(family, seed, min(MOST_LANES, len(keys)))
        for start in range(0, len(keys), batch.num_envs):
            part = keys[start : start + batch.num_envs]
            jobs = [
                Job(make_policy(p) if isinstance(p, str) else p(), 0, e.pressure)
                for p, e in (unique[key] for key in part)
            ]
            keep = None if self.records is None else partial(self._record, [spec for spec, _ in part])
            done.update(zip(part, run_jobs(batch, jobs, self.lambdas, timeline, keep=keep), strict=True))
            if self.progress:
                self.progress(len(part))
        for name, policy, episode in todo:
            key = (policy, episode) if isinstance(policy, str) else (name, episode)
            if isinstance(policy, str):
                self._known[key] = done[key]
            yield (name, episode), done[key]

    def _record(self, names: Sequence[str], job: int, record: EpisodeRecord) -> None:
        """Write a job's record under the name that results call its policy by."""
        assert self.records is not None
        write_record(replace(record, header={**record.header, "policy": names[job]}), self.records)


def mean_costs(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means of J and its parts."""
    rows = [outcome.costs() for outcome in outcomes]
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def reaching(pressure: float, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The pressure asked, the mean one that caps amount to, and whether that counts as the one asked."""
    got = float(np.mean([o.counters["pressure_reached"] for o in outcomes]))
    return {"pressure": pressure, "pressure_reached": got, "reached": reached(pressure, got)}
