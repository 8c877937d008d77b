"""The batched core of `PiKV/Trace-v0`: many lanes of the runtime's own ledger, driven by recorded traces.

Single environment, Gymnasium vector environment and SB3 view are thin faces of this class.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pikv_env.config import EnvConfig
from pikv_env.pool import Prepared, WorkloadPool
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.contract import GLOBAL_CONTROLS, GLOBAL_FEATURES, GROUP_CONTROLS, GROUP_FEATURES, Control
from pikv_runtime.ledger import Tally, clear, close, copy_requests, write_telemetry
from pikv_runtime.ledger.drive import Bank, enforce, run_interval
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F4, Ledger
from pikv_runtime.objective import Score, score

Floats = NDArray[np.float64]


@jit
def step_lanes(s: Ledger, low: int, high: int, bank: Bank, limit_s, groups: F4, globals_: F4, done) -> None:  # type: ignore[no-untyped-def]
    """Enforce the controls, run one interval and write telemetry for lanes [low, high)."""
    for i in range(low, high):
        enforce(s, i)
        done[i] = run_interval(s, i, bank, limit_s[i])
        write_telemetry(s, i, groups[i], globals_[i])


class TraceBatch:
    """n episodes side by side. A step is one control interval; the reward is minus its charge.

    Args:
        library: recorded traces; its page size and observation period must be the runtime's.
        config: what episodes are made of.
        num_envs: lanes n.
        seed: everything that is drawn derives from it.
        pool: prepared workloads to share between batches (made here if None).
        threads: lanes are stepped by so many threads; answers do not depend on it.
    """

    def __init__(
        self,
        library: TraceLibrary,
        config: EnvConfig,
        num_envs: int,
        seed: int = 0,
        pool: WorkloadPool | None = None,
        threads: int = 1,
    ) -> None:
        _check_match(library, config)
        self.config, self.num_envs = config, num_envs
        self.pool = pool if pool is not None else WorkloadPool(library, config, seed)
        self.bank = self.pool.bank
        self.state = self.pool.ledger(num_envs)
        self.num_groups = self.state.control_groups.shape[1]
        n = num_envs
        self.groups = np.zeros((n, self.num_groups, len(GROUP_FEATURES)), np.float32)
        self.globals = np.zeros((n, len(GLOBAL_FEATURES)), np.float32)
        self.control_groups = np.zeros((n, self.num_groups, len(GROUP_CONTROLS)), np.float32)
        self.control_globals = np.zeros((n, len(GLOBAL_CONTROLS)), np.float32)
        self.done = np.zeros(n, np.bool_)
        self.limit_s = np.zeros(n)
        self.before = np.zeros((n, len(Tally)))
        self.episode: list[Prepared] = [self.pool.prepared[0]] * n
        self.rngs = [np.random.default_rng([seed, lane]) for lane in range(n)]
        self.threads = max(1, min(threads, n))
        self._workers = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def seed(self, seed: int) -> None:
        """Draw all later episodes from `seed`, independently per lane."""
        self.rngs = [np.random.default_rng([seed, lane]) for lane in range(self.num_envs)]

    def reset_lane(
        self, i: int, workload: int | None = None, pressure: float | None = None, lambdas: tuple[float, float] | None = None
    ) -> None:
        """Start an episode in lane `i`; what is not given is drawn."""
        rng, config = self.rngs[i], self.config
        drawn = int(rng.integers(len(self.pool.prepared)))
        log_pressure = np.exp(rng.uniform(*np.log(config.pressure)))
        log_lambda1 = np.exp(rng.uniform(*np.log(config.lambda1)))
        log_lambda2 = np.exp(rng.uniform(*np.log(config.lambda2)))
        j = drawn if workload is None else workload
        self.episode[i] = prepared = self.pool.prepared[j]
        clear(self.state, i)
        copy_requests(self.state, i, self.pool.store, j)
        self.state.cap_bytes[i] = self.cap_for(prepared, pressure if pressure is not None else float(log_pressure))
        self.state.lambdas[i] = lambdas if lambdas is not None else (log_lambda1, log_lambda2)
        self.limit_s[i] = config.horizon_s * (1 + config.drain)
        self.before[i] = 0.0
        self.done[i] = False
        write_telemetry(self.state, i, self.groups[i], self.globals[i])

    def cap_for(self, prepared: Prepared, pressure: float) -> int:
        """Cap of one rank at `pressure`; never below what the largest request needs."""
        share = prepared.working_set_bytes / pressure / self.config.ranks
        return max(prepared.floor_bytes, int(share))

    def step(self) -> Floats:
        """Run one interval under `control_groups` and `control_globals` (clipped here). Returns rewards (n,)."""
        self._legalise()
        self.state.control_groups[:] = self.control_groups
        self.state.control_globals[:] = self.control_globals
        self._run()
        for i in np.flatnonzero(self.done):
            episode = self.episode[i]
            close(self.state, i, episode.reference.charges, episode.observations)
        rewards = np.array([-self._charge(i, self.state.tally[i] - self.before[i]).J for i in range(self.num_envs)])
        self.before[:] = self.state.tally
        return rewards

    def scores(self) -> list[Score]:
        """Score of every lane's episode so far; final once `done`."""
        return [self._charge(i, self.state.tally[i]) for i in range(self.num_envs)]

    def _charge(self, i: int, tally: Floats) -> Score:
        cap = float(self.state.cap_bytes[i]) * self.config.ranks
        lambda1, lambda2 = self.state.lambdas[i]
        return score(tally, self.episode[i].reference, cap, float(lambda1), float(lambda2))

    def _run(self) -> None:
        args = (self.bank, self.limit_s, self.groups, self.globals, self.done)
        if self._workers is None:
            step_lanes(self.state, 0, self.num_envs, *args)
            return
        edges = np.linspace(0, self.num_envs, self.threads + 1).astype(int)
        jobs = [
            self._workers.submit(step_lanes, self.state, int(a), int(b), *args)
            for a, b in zip(edges[:-1], edges[1:], strict=True)
        ]
        for job in jobs:
            job.result()

    def _legalise(self) -> None:
        """Clip every lane's control to the contract's ranges; NaN becomes neutral."""
        neutral = Control.neutral(self.num_groups)
        for values, safe, columns in (
            (self.control_groups, neutral.groups, GROUP_CONTROLS),
            (self.control_globals, neutral.globals, GLOBAL_CONTROLS),
        ):
            low = np.array([c.low for c in columns], np.float32)
            high = np.array([c.high for c in columns], np.float32)
            np.copyto(values, np.clip(np.where(np.isnan(values), safe, values), low, high))


def _check_match(library: TraceLibrary, config: EnvConfig) -> None:
    runtime = config.runtime
    for name in ("page_tokens", "observe_tokens"):
        if getattr(library, name) != getattr(runtime, name):
            raise ValueError(
                f"the traces were recorded with {name}={getattr(library, name)}, "
                f"the runtime has {getattr(runtime, name)}"
            )
