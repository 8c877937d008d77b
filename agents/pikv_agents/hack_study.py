"""Reward hacks against the best fixed setting of every workload: is there anything to be had by cheating?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_agents.rollout import Job, Outcome, run_jobs
from pikv_env.batch import TraceBatch
from pikv_env.config import EnvConfig
from pikv_env.hacks import FIXED, HACKS, HackPolicy
from pikv_env.pool import WorkloadPool
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.contract import Telemetry
from pikv_runtime.controllers import make_policy

LAMBDAS = (0.25, 10.0)

Cell = tuple[int, float]
"""(workload of the pool, pressure)."""


@dataclass(frozen=True)
class HackStudy:
    """J of every fixed setting and of every hack, in the same episodes."""

    cells: tuple[Cell, ...]
    fixed: dict[str, tuple[Outcome, ...]]
    hacks: dict[str, tuple[Outcome, ...]]
    acted: dict[str, int]
    """Intervals, over all cells, in which a hack left its base."""

    @property
    def best(self) -> tuple[str, ...]:
        """The best fixed setting of every cell: each hack's base and reference there."""
        return tuple(min(self.fixed, key=lambda spec: self.fixed[spec][c].score.J) for c in range(len(self.cells)))

    def ratios(self, name: str) -> NDArray[np.float64]:
        """J of hack `name` over its reference's, by cell; below 1 the hack pays."""
        return np.array(
            [
                o.score.J / self.fixed[best][c].score.J
                for c, (o, best) in enumerate(zip(self.hacks[name], self.best, strict=True))
            ]
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row for each hack, the least harmful first: geometric mean and ends of its ratios, and parts of J."""
        rows = []
        for name, outcomes in self.hacks.items():
            ratios = self.ratios(name)
            parts = {key: float(np.mean([o.costs()[key] for o in outcomes])) for key in outcomes[0].costs()}
            row = {"name": name, "ratio": float(np.exp(np.log(ratios).mean())), "least": float(ratios.min())}
            rows.append({**row, "most": float(ratios.max()), "acted": self.acted[name], **parts})
        return sorted(rows, key=lambda row: row["ratio"])


def study(batch: TraceBatch, pressures: Sequence[float], names: Sequence[str] | None = None) -> HackStudy:
    """Play every fixed setting, then hacks `names` (all if None), on every workload of `batch`'s pool and pressure."""
    cells = tuple((w, p) for w in range(len(batch.pool.prepared)) for p in pressures)
    wanted = HACKS.names() if names is None else list(names)
    fixed = _table(FIXED, run_jobs(batch, [Job(make_policy(spec), *cell) for spec in FIXED for cell in cells], LAMBDAS))
    best = HackStudy(cells, fixed, {}, {}).best
    told = Telemetry.zeros(batch.num_groups)
    bases = [make_policy(spec).decide(told) for spec in best]
    policies = [[HackPolicy(HACKS[name], base) for base in bases] for name in wanted]
    jobs = [Job(policy, *cell) for row in policies for policy, cell in zip(row, cells, strict=True)]
    hacks = _table(wanted, run_jobs(batch, jobs, LAMBDAS))
    acted = {name: sum(policy.acted for policy in row) for name, row in zip(wanted, policies, strict=True)}
    return HackStudy(cells, fixed, hacks, acted)


def every_step(library: TraceLibrary) -> TraceLibrary:
    """The same traces with an observation at every decode step, interpolated between the recorded ones.

    Interpolated rather than held: attention moves on with the text, and mass left behind would look like loss. What
    falls on pages that are not open yet goes to the open one.
    """
    every, steps = library.observe_tokens, max(1, int(library.output_tokens.max()) - 1)
    at = np.arange(steps)
    before = np.minimum(at // every, library.mass.shape[1] - 1)
    last = np.maximum(0, (library.output_tokens - 2) // every)[:, None]  # (C, 1) the last observation that counts
    after = np.minimum(before + 1, last)
    share = np.where(after > before, at % every / every, 0.0).astype(np.float32)[..., None, None]
    rows = np.arange(len(library))[:, None]
    fine = {
        name: (1 - share) * getattr(library, name)[:, before] + share * getattr(library, name)[rows, after]
        for name in ("mass", "score", "gate")
    }
    opened = (library.prompt_tokens[:, None] + at) // library.page_tokens  # (C, S) number of the open page
    shut = np.arange(library.mass.shape[3]) > opened[..., None, None]
    early = np.where(shut, fine["mass"], 0).sum(-1)
    fine["mass"][shut & np.ones_like(fine["mass"], bool)] = 0
    page = np.minimum(opened, library.mass.shape[3] - 1)
    for layer in range(library.layers):
        fine["mass"][rows, at[None], layer, page] += early[:, :, layer]
    return replace(library, observe_tokens=1, **fine)


def sampling(
    library: TraceLibrary, config: EnvConfig, pressures: Sequence[float], specs: Sequence[str]
) -> list[dict[str, Any]]:
    """What sampling hides: mean loss and J of `specs` as observed, and were every decode step observed.

    Every request is audited, so that only the choice of steps differs.
    """
    found: dict[str, list[list[Outcome]]] = {spec: [] for spec in specs}
    for fine in (False, True):
        traces = every_step(library) if fine else library
        runtime = replace(config.runtime, audit_share=1.0, observe_tokens=traces.observe_tokens)
        own = replace(config, runtime=runtime)
        pool = WorkloadPool(traces, own, 0)
        cells = [(w, p) for w in range(len(pool.prepared)) for p in pressures]
        batch = TraceBatch(traces, own, len(cells), 0, pool)
        for spec in specs:
            found[spec].append(run_jobs(batch, [Job(make_policy(spec), *cell) for cell in cells], LAMBDAS))
    rows = []
    for spec, (seen, true) in found.items():
        loss, true_loss = (float(np.mean([o.score.loss for o in part])) for part in (seen, true))
        j, true_j = (float(np.exp(np.mean([np.log(o.score.J) for o in part]))) for part in (seen, true))
        rows.append({"name": spec, "loss": loss, "loss_every_step": true_loss, "J": j, "J_every_step": true_j})
    return rows


def _table(names: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, tuple[Outcome, ...]]:
    """Outcomes, name by name and cell by cell within, by name."""
    count = len(outcomes) // max(1, len(names))
    return {name: tuple(outcomes[k * count : (k + 1) * count]) for k, name in enumerate(names)}
