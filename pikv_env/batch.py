"""The batched core of `PiKV/Trace-v0`: many lanes of the runtime's own ledger, driven by recorded traces.

Single environment, Gymnasium vector environment and SB3 view are thin faces of this class.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pikv_env.config import EnvConfig
from pikv_env.constraints import CONSTRAINTS, Constraints
from pikv_env.fingerprints import pool_fingerprint
from pikv_env.pool import Prepared, WorkloadPool
from pikv_env.snapshot import OWN, LaneState, restore_lane, save_lane
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.block_rules import Orders, make_block_rule
from pikv_runtime.contract import GLOBAL_CONTROLS, GLOBAL_FEATURES, GROUP_CONTROLS, GROUP_FEATURES, Control
from pikv_runtime.ledger import Tally, clear, close, copy_requests, write_telemetry
from pikv_runtime.ledger.drive import Bank, run_interval, stage
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.rule_room import needs_of, widened, with_orders
from pikv_runtime.ledger.state import F4, Ledger
from pikv_runtime.objective import Score, charges, denominators, score, weigh
from pikv_runtime.views.base import CONTROL_GLOBAL_BOUNDS, CONTROL_GROUP_BOUNDS

Floats = NDArray[np.float64]


@jit
def step_lanes(  # type: ignore[no-untyped-def]
    s: Ledger, low: int, high: int, bank: Bank, limit_s, asked_groups: F4, asked_globals: F4, groups: F4, globals_: F4,
    done,
) -> None:  # fmt: skip
    """Stage the asked controls, run one interval and write telemetry for lanes [low, high) that are not over."""
    for i in range(low, high):
        if done[i]:
            continue
        stage(s, i, asked_groups[i], asked_globals[i])
        done[i] = run_interval(s, i, bank, limit_s[i])
        write_telemetry(s, i, groups[i], globals_[i])


class TraceBatch:
    """n episodes side by side. A step is one control interval; the reward is minus its charge (of the terms that no
    constraint takes the place of).

    A lane that is over stays as it is, at reward 0, until it is reset.

    Args:
        library: recorded traces; must fit the runtime (pages, observations).
        config: what episodes are made of.
        num_envs: lanes n.
        seed: everything that is drawn derives from it: the pool, and each lane's episodes.
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
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: must be at least 1")
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
        self._neutral = Control.neutral(self.num_groups)
        self.done = np.zeros(n, np.bool_)
        self.limit_s = np.zeros(n)
        self.before = np.zeros((n, len(Tally)))  # tallies at the interval's start
        self.scale = np.ones((n, 3))  # denominators of latency, memory and loss
        self.parts = np.zeros((n, 3))  # latency, memory and loss of the last interval
        self.constraints = Constraints(config)
        self.spent = np.zeros((n, len(CONSTRAINTS)))  # of the constraints' budgets, in the episode so far
        self.spending, self.costs = np.zeros_like(self.spent), np.zeros_like(self.spent)  # of the last interval
        self.orders = [Orders()] * n
        self.workload = np.zeros(n, np.int64)  # number in the pool
        self.pressure = np.zeros(n)
        self.elapsed = np.zeros(n, np.int64)  # steps of the episode so far
        self.rngs = [np.random.default_rng([seed, lane]) for lane in range(n)]
        self.threads = max(1, min(threads, n))
        self._workers = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def seed(self, seed: int) -> None:
        """Draw all later episodes from `seed`, independently per lane."""
        for lane in range(self.num_envs):
            self.seed_lane(lane, seed, lane)

    def seed_lane(self, i: int, seed: int, stream: int = 0) -> None:
        """Draw lane `i`'s later episodes as lane `stream` of a batch of seed `seed` would."""
        self.rngs[i] = np.random.default_rng([seed, stream])

    def reset_lane(
        self,
        i: int,
        workload: int | None = None,
        pressure: float | None = None,
        lambdas: tuple[float, float] | None = None,
        orders: Orders | None = None,
    ) -> None:
        """Start an episode in lane `i`; what is not given is drawn. What is given shifts no later draw.

        `orders`: block rule and page order of the lane; by default the configured runtime's.
        """
        rng, config = self.rngs[i], self.config
        j = int(rng.integers(len(self.pool.prepared)))
        ranges = (config.pressure, config.lambda1, config.lambda2)
        level, *prices = [_log_uniform(rng, ends) for ends in ranges]
        self.workload[i] = j if workload is None else workload
        self.pressure[i] = level if pressure is None else pressure
        prepared = self.prepared(i)
        clear(self.state, i)
        copy_requests(self.state, i, self.pool.store, int(self.workload[i]))
        self.set_orders(i, orders or Orders(make_block_rule(config.runtime.block_rule)))
        self.state.cap_bytes[i] = self.cap_for(prepared, float(self.pressure[i]))
        self.state.host_cap[i] = config.host_bytes(int(self.state.cap_bytes[i]))
        self.state.lambdas[i] = prices if lambdas is None else lambdas
        self.scale[i] = denominators(prepared.reference, self.cap_total(i))
        self.limit_s[i] = config.horizon_s * (1 + config.drain)
        self.before[i] = self.parts[i] = 0.0
        self.spent[i] = self.spending[i] = self.costs[i] = 0.0
        self.elapsed[i] = 0
        self.done[i] = False
        write_telemetry(self.state, i, self.groups[i], self.globals[i])

    def set_orders(self, i: int, orders: Orders) -> None:
        """Put lane `i` under `orders`, begun anew. `state` may be another ledger afterwards, over the same arrays."""
        self.state = with_orders(self.state, i, orders)
        self.orders[i] = orders

    def prepared(self, i: int) -> Prepared:
        """The workload that lane `i` plays."""
        return self.pool.prepared[int(self.workload[i])]

    def cap_for(self, prepared: Prepared, pressure: float) -> int:
        """Cap of one rank at `pressure`; never below what the largest request needs."""
        share = prepared.working_set_bytes / pressure / self.config.ranks
        return max(prepared.floor_bytes, int(share))

    def reached_pressure(self, i: int) -> float:
        """Pressure that lane `i`'s cap amounts to: below the one asked for where the largest request sets the cap."""
        return self.prepared(i).working_set_bytes / self.cap_total(i)

    def cap_total(self, i: int) -> float:
        """Cap of lane `i` over all ranks, bytes."""
        return float(self.state.cap_bytes[i]) * self.config.ranks

    def step(self) -> Floats:
        """Run one interval under `control_groups` and `control_globals` (clipped here); rewards (n,)."""
        self._legalise()
        running = ~self.done
        self._run()
        for i in np.flatnonzero(self.done & running):
            prepared = self.prepared(int(i))
            close(self.state, int(i), prepared.reference.charges, prepared.observations)
        self.elapsed += running
        self.parts = charges(self.state.tally - self.before, self.scale)
        self.before[:] = self.state.tally
        if self.constraints:
            self._spend()
        rewards: Floats = -weigh(self.parts * self.constraints.rewarded, self.state.lambdas)
        return rewards

    def score(self, i: int) -> Score:
        """Score of lane `i`'s episode so far; final once `done`."""
        lambda1, lambda2 = self.state.lambdas[i].tolist()
        return score(self.state.tally[i], self.prepared(i).reference, self.cap_total(i), lambda1, lambda2)

    def scores(self) -> list[Score]:
        """Scores of all lanes."""
        return [self.score(i) for i in range(self.num_envs)]

    def get_state(self, i: int) -> LaneState:
        """A copy of lane `i`, from which `set_state` continues identically."""
        saved = save_lane(i, self.state, self._own(), self.rngs[i], pool_fingerprint(self.pool))
        return replace(saved, orders=self.orders[i])

    def set_state(self, i: int, state: LaneState) -> None:
        """Continue lane `i` from `state`; raises ValueError where it comes from another pool."""
        self.state = widened(self.state, needs_of(state.ledger))
        restore_lane(i, state, self.state, self._own(), self.rngs[i], pool_fingerprint(self.pool))
        self.orders[i] = state.orders

    def _spend(self) -> None:
        """Account for the interval just ended: what was spent of the constraints' budgets, and beyond them."""
        after = self.constraints.spent(self.state, self.scale[:, 2], self.done)
        self.spending, self.costs = after - self.spent, self.constraints.costs(self.spent, after)
        self.spent[:] = after

    def _own(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in OWN}

    def close(self) -> None:
        """Stop the threads."""
        if self._workers is not None:
            self._workers.shutdown()

    def _run(self) -> None:
        asked = (self.control_groups, self.control_globals)
        args = (self.bank, self.limit_s, *asked, self.groups, self.globals, self.done)
        if self._workers is None:
            step_lanes(self.state, 0, self.num_envs, *args)
            return
        edges = np.linspace(0, self.num_envs, self.threads + 1).astype(int)
        jobs = [self._workers.submit(step_lanes, self.state, int(a), int(b), *args) for a, b in pairwise(edges)]
        for job in jobs:
            job.result()

    def _legalise(self) -> None:
        """Clip every lane's control to the contract's ranges; NaN becomes neutral."""
        for values, safe, (low, high) in (
            (self.control_groups, self._neutral.groups, CONTROL_GROUP_BOUNDS),
            (self.control_globals, self._neutral.globals, CONTROL_GLOBAL_BOUNDS),
        ):
            np.copyto(values, np.clip(np.where(np.isnan(values), safe, values), low, high))


def _log_uniform(rng: np.random.Generator, pair: tuple[float, float]) -> float:
    """A number between the ends whose logarithm is uniform; exactly the end where both are equal."""
    low, high = pair
    return float(low * (high / low) ** rng.random())


def _check_match(library: TraceLibrary, config: EnvConfig) -> None:
    """Refuse traces of another runtime: the compiled ledger does not check indices."""
    for name in ("page_tokens", "observe_tokens"):
        if getattr(library, name) != getattr(config.runtime, name):
            raise ValueError(
                f"the traces were recorded with {name}={getattr(library, name)}, "
                f"the runtime has {getattr(config.runtime, name)}"
            )
