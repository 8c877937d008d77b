"""Before training: what the start costs on the training workloads, interval by interval, and what observations
look like.

Rewards are changed for the optimiser's numerics only. From a reward, the start's own reward on the same workload, at
the same pressure and at the same interval is subtracted: most of what makes one interval dearer than another is who
arrives, which no policy decides, and a baseline that depends on arrivals alone changes no optimum (Mao et al. 2019,
arXiv 1807.02264). The rest is divided by what the start's whole episode costs, so that an overloaded workload does
not drown all others, clipped to `MOST_SAVED`, and scaled so that a discounted return of 1 is a saving of
1/`RETURN_SCALE` of the start's J.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from pikv_agents.distil import start_actions
from pikv_agents.normaliser import Moments
from pikv_agents.presets import TrainConfig
from pikv_agents.rollout import Job, run_jobs
from pikv_agents.static_grid import best_single
from pikv_env.batch import TraceBatch
from pikv_env.config import EnvConfig
from pikv_env.pool import WorkloadPool
from pikv_env.spaces import PolicySpaces
from pikv_runtime.controllers import make_policy

LEVELS = 4
"""Pressures at which the start is played, evenly spaced in their logarithm."""
SEARCHED = 4
"""Workloads on which the start is looked for."""
LANES = 16
WANDERERS = ("lazy/h2o", "random")
"""Besides the start, these show what observations may look like."""
SAMPLED = 8
"""Telemetry is kept at every so many intervals."""
RETURN_SCALE = 20.0
MOST_SAVED = 2.0
"""Largest saving or loss of one interval that counts, in mean charges of the start's intervals: the end of an
overloaded episode, where all that is unserved is charged at once, must not drown the rest of a batch."""


@dataclass(frozen=True)
class Survey:
    """What was found."""

    start: str
    """The heuristic that the first policy imitates."""
    levels: NDArray[np.float64]
    """(K,) pressures."""
    charges: NDArray[np.float64]
    """(W, K, T) the start's charges by workload, pressure and interval; 0 after its end."""
    mean: list[float]
    std: list[float]
    telemetry: dict[str, NDArray[np.float32]]
    """`groups` (S, N, F) and `globals` (S, G): a sample of what was seen."""
    observations: NDArray[np.float32]
    """(S, D) the same as observations."""
    actions: NDArray[np.float32]
    """(S, A) what the start does there, in the control view's own numbers."""

    def baseline(self, workload: int, pressure: float) -> NDArray[np.float64]:
        """(T,) charges of the start, between the pressures that were played by interpolation."""
        place = np.interp(np.log(pressure), np.log(self.levels), np.arange(len(self.levels)))
        low = int(place)
        high = min(low + 1, len(self.levels) - 1)
        rows = self.charges[workload]
        return rows[low] + (place - low) * (rows[high] - rows[low])


def pressure_levels(config: EnvConfig) -> NDArray[np.float64]:
    """`LEVELS` pressures of the training range, one where it is a point."""
    low, high = config.pressure
    return np.geomspace(low, high, LEVELS if high > low else 1)


def survey(config: TrainConfig, pool: WorkloadPool) -> Survey:
    """Find the start if it is not given, play it, and measure observations."""
    batch = TraceBatch(pool.library, config.env, LANES, config.seed, pool, config.threads)
    levels = pressure_levels(config.env)
    start = config.start or _find_start(config, batch, float(levels[len(levels) // 2]))
    spaces = PolicySpaces(config.env.control, batch.num_groups)
    moments = Moments(len(spaces.names))
    cells = [(w, float(p)) for w in range(len(pool.prepared)) for p in levels]
    jobs = [Job(make_policy(start), w, p) for w, p in cells]
    charges: list[list[float]] = [[] for _ in jobs]
    sample: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def watch(first: int, lanes: list[int], rewards: NDArray[np.float64]) -> None:
        moments.add(spaces.observe(batch.groups[lanes], batch.globals[lanes]))
        for i in lanes:
            if batch.elapsed[i] % SAMPLED == 0:
                sample.append((batch.groups[i].copy(), batch.globals[i].copy()))
            if first + i < len(charges):
                charges[first + i].append(-rewards[i])

    run_jobs(batch, jobs, watch=watch)
    table = np.zeros((len(jobs), max(map(len, charges))))
    for row, values in zip(table, charges, strict=True):
        row[: len(values)] = values
    wanderers = _wanderers(levels, len(pool.prepared))
    charges.clear()
    run_jobs(batch, wanderers, watch=watch)
    batch.close()
    mean, std = moments.freeze(spaces.observation_space)
    told = {name: np.stack(rows) for name, rows in zip(("groups", "globals"), zip(*sample, strict=True), strict=True)}
    seen = spaces.observe(told["groups"], told["globals"])
    actions = start_actions(start, config.env.control, batch.num_groups, sample)
    return Survey(start, levels, table.reshape(len(pool.prepared), len(levels), -1), mean, std, told, seen, actions)


def _wanderers(levels: NDArray[np.float64], count: int) -> list[Job]:
    """Each wanderer once at every pressure, on workloads in turn."""
    pairs = [(spec, float(p)) for spec in WANDERERS for p in levels]
    return [Job(make_policy(spec), k % count, p) for k, (spec, p) in enumerate(pairs)]


def _find_start(config: TrainConfig, batch: TraceBatch, pressure: float) -> str:
    """The best single setting of the grid over the first workloads at the middle pressure."""
    workloads = range(min(SEARCHED, len(batch.pool.prepared)))
    jobs = [Job(make_policy(spec), w, pressure) for spec in config.start_grid for w in workloads]
    found = iter(run_jobs(batch, jobs))
    return best_single({spec: [next(found).score.J for _ in workloads] for spec in config.start_grid})


class SavingReward(VecEnvWrapper):
    """Rewards as savings against the start, see this module; the episode's own return stays as it is."""

    def __init__(self, venv: VecEnv, survey: Survey, gamma: float) -> None:
        super().__init__(venv)
        self.survey = survey
        horizon = survey.charges.shape[2]
        self.scale = RETURN_SCALE * horizon * (1 - gamma)
        self.baselines = np.zeros((venv.num_envs, horizon + 1))  # the last column stays 0: after the start's end
        self.weights = np.ones(venv.num_envs)
        self.elapsed = np.zeros(venv.num_envs, np.int64)
        self._saved, self._steps = 0.0, 0

    def reset(self) -> NDArray[np.float32]:
        """See `VecEnv.reset`."""
        observation = self.venv.reset()
        self._prepare(range(self.num_envs))
        return observation

    def step_wait(self):  # type: ignore[no-untyped-def]
        """See `VecEnv.step_wait`."""
        observation, rewards, dones, infos = self.venv.step_wait()
        at = np.minimum(self.elapsed, self.baselines.shape[1] - 1)
        saved = rewards + self.baselines[np.arange(self.num_envs), at]
        limit = MOST_SAVED * self.scale / self.survey.charges.shape[2]
        scaled = np.clip(saved * self.weights, -limit, limit).astype(np.float32)
        self.elapsed += 1
        self._saved, self._steps = self._saved + float(scaled.sum()), self._steps + self.num_envs
        if dones.any():
            self._prepare(np.flatnonzero(dones).tolist())
        return observation, scaled, dones, infos

    def take_saving(self) -> float:
        """Share of the start's charges saved since the last call, exploration included."""
        saved = self._saved / self.scale * self.survey.charges.shape[2] / max(1, self._steps)
        self._saved, self._steps = 0.0, 0
        return saved

    def _prepare(self, lanes: Sequence[int]) -> None:
        workloads, pressures = (self.venv.get_attr(name, lanes) for name in ("workload", "pressure"))
        for lane, workload, pressure in zip(lanes, workloads, pressures, strict=True):
            baseline = self.survey.baseline(int(workload), float(pressure))
            self.baselines[lane, :-1] = baseline
            self.weights[lane] = self.scale / baseline.sum()
            self.elapsed[lane] = 0
