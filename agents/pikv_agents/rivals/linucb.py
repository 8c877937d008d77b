"""LinUCB (Li et al., 2010, disjoint models): a contextual bandit over a few settings, learned online, then fixed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pikv_agents.rivals.trials import NEUTRAL, Found, Trials
from pikv_agents.rollout import Episode, Job, run_jobs
from pikv_agents.static_grid import COARSE_GRID
from pikv_runtime.contract import Control, GlobalFeature, Telemetry
from pikv_runtime.controllers import make_policy

ARMS = (
    *COARSE_GRID,
    "load_proportional:fan_out=0.2,cached_share=0.2/h2o",
    "load_proportional:fan_out=0.35,cached_share=0.5,r_pressure=4/h2o",
)
"""Settings that are chosen among."""
CONTEXT = (
    GlobalFeature.PRESSURE,
    GlobalFeature.CACHED_SHARE,
    GlobalFeature.LIVE_SHARE,
    GlobalFeature.RUNNING_SHARE,
    GlobalFeature.QUEUED_REQUESTS,
    GlobalFeature.QUEUED_PROMPT,
)
HOLD = 30
"""Control intervals for which an arm stays: what a cache keeps pays off later than at once."""
ALPHA = 0.5
"""Width of the confidence bound in standard deviations of the estimate, for rewards of about unit spread."""
RIDGE = 1.0
LEAST = 1e-6
"""Charge of an interval below which all are alike."""

HALF_LIFE_S = 300.0
"""Model time after which a charge counts half in what a hold is worth, as in training."""

Vector = NDArray[np.float64]
Experience = tuple[int, Vector, float]
"""Arm, context, reward."""


def context(telemetry: Telemetry) -> Vector:
    """What an arm is chosen by, (D,): a one, then the features of `CONTEXT`."""
    return np.concatenate([[1.0], telemetry.globals[list(CONTEXT)].astype(np.float64)])


@dataclass
class Models:
    """One ridge regression of reward on context for each arm."""

    gram: NDArray[np.float64] = field(default_factory=lambda: np.tile(RIDGE * np.eye(SIZE), (len(ARMS), 1, 1)))
    """(K, D, D)"""
    moment: NDArray[np.float64] = field(default_factory=lambda: np.zeros((len(ARMS), SIZE)))
    """(K, D)"""
    pulls: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(ARMS), np.int64))

    def add(self, arm: int, x: Vector, reward: float) -> None:
        """Learn from one hold."""
        self.gram[arm] += np.outer(x, x)
        self.moment[arm] += reward * x
        self.pulls[arm] += 1

    def values(self, x: Vector, alpha: float) -> Vector:
        """Upper confidence bounds (K,); with alpha 0 the estimates, of arms that were pulled."""
        theta = np.linalg.solve(self.gram, self.moment[..., None])[..., 0]
        spread = np.linalg.solve(self.gram, np.broadcast_to(x[:, None], (len(ARMS), SIZE, 1)))[..., 0] @ x
        bounds = theta @ x + alpha * np.sqrt(np.maximum(spread, 0.0))
        return bounds if alpha > 0 else np.where(self.pulls > 0, bounds, -np.inf)


SIZE = 1 + len(CONTEXT)


class Bandit:
    """A policy that holds the arm of the best bound for `HOLD` intervals, or one arm throughout (`only`)."""

    name = "linucb"

    def __init__(self, models: Models, alpha: float = 0.0, only: int | None = None) -> None:
        self.models, self.alpha, self.only = models, alpha, only
        self.arms = [make_policy(spec) for spec in ARMS]
        self.holds: list[tuple[int, Vector]] = []
        self.charges: list[float] = []
        self.decided = 0

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        if self.decided % HOLD == 0:
            x = context(telemetry)
            arm = int(np.argmax(self.models.values(x, self.alpha))) if self.only is None else self.only
            self.holds.append((arm, x))
        self.decided += 1
        return self.arms[self.holds[-1][0]].decide(telemetry, out)

    def experience(self, interval_s: float) -> list[Experience]:
        """Of every hold its arm, its context and what followed: minus the logarithm of the mean charge from then on,
        in which a charge counts half after `HALF_LIFE_S`."""
        fade, charged, weight = 0.5 ** (interval_s / HALF_LIFE_S), 0.0, 0.0
        tail = np.zeros(len(self.charges))
        for k in range(len(self.charges) - 1, -1, -1):
            charged, weight = self.charges[k] + fade * charged, 1.0 + fade * weight
            tail[k] = charged / weight
        return [(arm, x, -float(np.log(max(tail[k * HOLD], LEAST)))) for k, (arm, x) in enumerate(self.holds)]


def linucb(trials: Trials, rng: np.random.Generator) -> Found:
    """Play every arm for an episode, then learn over the training episodes in turn as long as the budget lasts."""
    models, first, scale = Models(), [], (0.0, 1.0)
    order = [trials.episodes[int(k)] for k in rng.permutation(len(trials.episodes))]
    number = 0
    while not number or trials.searching():
        forced = number < len(ARMS)
        # All arms see the same first episode, or its difficulty would be taken for theirs.
        bandit = Bandit(models, ALPHA, number) if forced else Bandit(models, ALPHA)
        gained = _play(trials, bandit, order[0 if forced else number % len(order)])
        number += 1
        if forced:
            first += gained
            rewards = np.array([reward for *_, reward in first])
            scale = (float(rewards.mean()), float(rewards.std()) + LEAST)
        if number >= len(ARMS):
            _add(models, first + gained if not models.pulls.any() else gained, scale)
    if not models.pulls.any():
        _add(models, first, scale)  # a budget for some arms only
    return _found(trials, models, number)


def _add(models: Models, gained: list[Experience], scale: tuple[float, float]) -> None:
    for arm, x, reward in gained:
        models.add(arm, x, (reward - scale[0]) / scale[1])


def _found(trials: Trials, models: Models, episodes: int) -> Found:
    """What was learned, if it is better than the neutral setting."""
    name, score = trials.best([Bandit.name], {Bandit.name: lambda: Bandit(models)})
    if name == NEUTRAL:
        return Found(NEUTRAL, f"{NEUTRAL}: nothing that was learned is better", trials.spent, episodes, score)
    shares = models.pulls / models.pulls.sum()
    most = ", ".join(f"{shares[k]:.0%} {ARMS[k]}" for k in np.argsort(-shares)[:3])
    told = f"{len(ARMS)} arms, {models.pulls.sum()} holds of {HOLD} intervals; while learning {most}"
    return Found(lambda: Bandit(models), told, trials.spent, episodes, score)


def _play(trials: Trials, bandit: Bandit, episode: Episode) -> list[Experience]:
    """Play one episode and pay for it."""
    batch = trials.suite.batch(episode.family, episode.seed, 1)
    jobs = [Job(bandit, 0, episode.pressure)]
    outcome = run_jobs(
        batch, jobs, trials.suite.lambdas, watch=lambda job, lanes, rewards: bandit.charges.append(-float(rewards[0]))
    )
    batch.close()
    trials.pay(outcome[0])
    return bandit.experience(trials.suite.config.runtime.interval_s)
