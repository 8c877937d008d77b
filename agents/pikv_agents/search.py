"""Warm start: a short evolution strategy over the constant action, before the learner makes it depend on the state.

Which blocks a cache keeps pays off minutes later and shows only in whole episodes; comparing whole episodes of one
workload under opposite changes of the action tells more per interval about such weights than a policy gradient.
Each generation plays antithetic pairs, fits how J answers to each entry of the action, and moves the entries whose
effect stands out of the noise. Its control intervals count like the learner's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pikv_agents.presets import TrainConfig
from pikv_agents.rollout import Job, run_jobs
from pikv_agents.survey import Survey
from pikv_env.batch import TraceBatch
from pikv_env.pool import WorkloadPool
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.control_views import ControlView

Floats = NDArray[np.float64]
MOST_EFFECT = 0.3
"""Largest log ratio of J in a pair that counts: one overloaded workload must not decide."""
NOISE_LEVEL = 1.0
"""Effects below so many standard errors move nothing."""
LONGEST_STEP = 1.5
"""Largest move of an entry in a generation, in standard deviations of its noise."""


class Constant:
    """Always the same action, read by a control view."""

    name = "constant"

    def __init__(self, view: ControlView, action: Floats) -> None:
        self.view = view
        self.action = np.clip(action, -1, 1).astype(np.float32)[None]

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        out = out if out is not None else Control.zeros(len(telemetry.groups))
        groups, globals_ = telemetry.groups[None], telemetry.globals[None]
        self.view.decode(self.action, groups, globals_, out.groups[None], out.globals[None])
        return out


@dataclass(frozen=True)
class Found:
    """What the search came to."""

    action: Floats
    steps: int
    """Control intervals that it took."""


def search(
    config: TrainConfig,
    pool: WorkloadPool,
    survey: Survey,
    view: ControlView,
    start: Floats,
    noise: Floats,
    report: Callable[[int, float], None] = lambda steps, saving: None,
) -> Found:
    """Improve the constant action `start` (A,), exploring with `noise` (A,) standard deviations.

    `report` is told after each generation how many steps were taken so far, and the mean share of J saved by the
    generation's centre against the start, exploration included.
    """
    rng = np.random.default_rng([config.seed, 7])
    batch = TraceBatch(pool.library, config.env, config.num_envs, config.seed, pool, config.threads)
    action, steps = np.asarray(start, np.float64), 0
    cells = [(w, float(p)) for w in range(len(pool.prepared)) for p in survey.levels]
    for _ in range(config.generations):
        chosen = [cells[int(k)] for k in _spread(rng, len(cells), config.pairs)]
        moves = rng.standard_normal((config.pairs, len(action))) * noise
        actions = np.clip(np.stack([action + moves, action - moves], 1), -1, 1)  # (pairs, 2, A)
        jobs = [Job(Constant(view, a), *cell) for pair, cell in zip(actions, chosen, strict=True) for a in pair]
        outcomes = run_jobs(batch, jobs)
        steps += int(sum(o.counters["decisions"] for o in outcomes))
        logs = np.log([o.score.J for o in outcomes]).reshape(-1, 2)
        base = np.log([survey.baseline(*cell).sum() for cell in chosen])
        report(steps, float(1 - np.exp((logs - base[:, None]).mean())))
        step = _step((actions[:, 0] - actions[:, 1]) / 2, (logs[:, 0] - logs[:, 1]) / 2, noise)
        action = np.clip(action + step, -1, 1)
    batch.close()
    return Found(action, steps)


def _spread(rng: np.random.Generator, cells: int, pairs: int) -> NDArray[np.int64]:
    """Cells for the pairs: each equally often, as far as the numbers allow."""
    rounds = [rng.permutation(cells) for _ in range(-(-pairs // cells))]
    return np.concatenate(rounds)[:pairs]


def _step(moves: Floats, effects: Floats, noise: Floats) -> Floats:
    """The move of the centre: against each entry's effect, as far as it exceeds its standard error.

    `moves` (P, A) are half the differences of the pairs' actions, `effects` (P,) half those of log J. Entries are
    independent by design, so one regression each will do.
    """
    effects = np.clip(effects, -MOST_EFFECT, MOST_EFFECT)
    power = np.maximum((moves**2).sum(axis=0), 1e-12)
    slope = moves.T @ effects / power
    residual = effects[:, None] - moves * slope
    error = np.sqrt((residual**2).sum(axis=0) / max(1, len(effects) - 1) / power)
    t = slope / np.maximum(error, 1e-12)
    certain = np.sign(t) * np.maximum(np.abs(t) - NOISE_LEVEL, 0.0)
    return -noise * np.clip(certain, -LONGEST_STEP, LONGEST_STEP)
