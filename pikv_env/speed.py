"""How fast the trace environment steps: on the reference instance, beside the live runtime, and as sizes grow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pikv_env.batch import TraceBatch
from pikv_env.pool import WorkloadPool
from pikv_env.reference_instance import Instance, LoadedPool, loaded_batch, neutral
from pikv_env.sb3 import TraceVecEnv
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.contract import Array, GlobalControl, GroupControl
from pikv_runtime.engine import Engine
from pikv_runtime.ledger.state import Status, Tally
from pikv_runtime.requests import RequestList

REFERENCE = Instance()
LONG = replace(REFERENCE, iterations=32.0, audit_share=0.25)
"""The same server, decided upon as rarely as every two seconds on the profile of a CPU."""
WARM_STEPS = 10
BUSY = 0.8  # of the slots, or what was measured is idling


@dataclass(frozen=True)
class Speed:
    """Median of several runs."""

    intervals_per_s: float
    low: float
    high: float
    per_interval: dict[str, float]
    """What an interval held on average: iterations, looks at requests, pages, blocks."""


def steering(batch: TraceBatch) -> None:
    """Use every lever: half of the pages read, some demoted, a little evicted, by attention mass."""
    neutral(batch)
    batch.control_groups[..., GroupControl.COMPRESSION_RATIO] = 1.3
    batch.control_groups[..., GroupControl.EVICT_FRACTION] = 0.01
    batch.control_globals[:, GlobalControl.FAN_OUT] = 0.5
    batch.control_globals[:, GlobalControl.PAGE_MASS] = 1.0


def measure(instance: Instance, lanes: int, threads: int, steps: int, repeats: int, steer: bool = False) -> Speed:
    """Steps of the batch per second of wall time, times lanes; observations are written, nothing is learned."""
    batch = warm_batch(instance, lanes, threads, steps * repeats, steer)
    before = batch.state.tally.copy()
    rates = [rate(batch, steps) for _ in range(repeats)]
    held = (batch.state.tally - before).mean(0) / (steps * repeats)
    batch.close()
    return Speed(float(np.median(rates)), min(rates), max(rates), _contents(batch, held))


def warm_batch(instance: Instance, lanes: int, threads: int, steps: int, steer: bool = False) -> TraceBatch:
    """A loaded batch under the controls that are to be measured, with arrivals for `steps` more."""
    batch = loaded_batch(instance, lanes, 2 * (steps + WARM_STEPS), threads)
    if steer:
        steering(batch)
    for _ in range(WARM_STEPS):
        batch.step()
    return batch


class LoadedView(TraceVecEnv):
    """A loaded server behind SB3's face. `reset` leaves its lanes where they are, in the middle of their episodes.

    Args:
        instance: what every lane holds.
        num_envs: lanes.
        intervals: steps for which arrivals last.
        threads: of the batch.
    """

    def __init__(self, instance: Instance, num_envs: int, intervals: int, threads: int = 1) -> None:
        self.loaded = warm_batch(instance, num_envs, threads, intervals)
        pool = self.loaded.pool
        super().__init__(num_envs, pool.library, config=pool.config, pool=pool, threads=threads)

    def _make_batch(
        self, library: TraceLibrary, num_envs: int, seed: int, pool: WorkloadPool | None, threads: int
    ) -> TraceBatch:
        return self.loaded

    def reset(self) -> Array:
        """Observations of the lanes as they are."""
        return self._observation()


def rate(batch: TraceBatch, steps: int) -> float:
    """Intervals per second over `steps` steps; raises RuntimeError if the lanes run idle."""
    start = time.perf_counter()
    for _ in range(steps):
        batch.step()
    found = steps * batch.num_envs / (time.perf_counter() - start)
    demand_busy(batch)
    return found


def demand_busy(batch: TraceBatch) -> None:
    """Raise RuntimeError if the lanes run idle."""
    slots = batch.config.runtime.slots
    if batch.state.running_count.mean() < BUSY * slots:
        raise RuntimeError(f"only {batch.state.running_count.mean():.1f} requests of {slots} run: this measures idling")


def _contents(batch: TraceBatch, held: np.ndarray) -> dict[str, float]:
    s = batch.state
    return {
        "iterations": float(held[Tally.ITERATIONS]),
        "live_pages": float(s.page_live.sum() / batch.num_envs),
        "cached_blocks": float(s.cached_count.mean()),
        "running": float(s.running_count.mean()),
        "prompt_tokens": float(held[Tally.PROMPT_TOKENS]),
        "encoded_pages": float(held[Tally.ENCODED_PAGES]),
        "evicted_blocks": float(held[Tally.EVICTED_BLOCKS]),
        "evicted_pages": float(held[Tally.EVICTED_PAGES]),
    }


def live_interval_s(instance: Instance, model: Any, intervals: int = 3) -> list[float]:
    """Wall seconds of control intervals of the live runtime with `instance.running` requests decoding, one rank.

    Nothing lies cached, which makes it, if anything, faster: ten thousand blocks would have to be served first.
    """
    pool = LoadedPool(instance, intervals=1, workloads=1)
    requests = pool.workload(np.random.default_rng(0)).requests[: instance.running]
    workload = RequestList("reference", 1.0, tuple(replace(r, arrival_s=0.0) for r in requests), family="reference")
    engine = Engine(model, replace(instance.runtime(), interval_s=pool.config.runtime.interval_s), prices=pool.prices)
    engine.load(workload, pool.prepared[0].reference)
    s = engine.ledger
    while (s.slot_tokens[0] < s.slot_target[0]).any() or (s.req_status[0, : instance.running] != Status.RUNNING).any():
        engine.step(np.inf)
    s.interval_end_s[0] = s.clock_s[0] + s.interval_s[0]
    seconds = []
    for _ in range(intervals):
        start = time.perf_counter()
        engine.decide()
        engine.run_interval()
        engine.measure()
        seconds.append(time.perf_counter() - start)
    return seconds


def view_speed(view: TraceVecEnv, steps: int, repeats: int) -> list[float]:
    """Steps per second of an SB3 view under small random actions, actions decoded and observations written."""
    rng, rates = np.random.default_rng(0), []
    view.reset()
    shape = (view.num_envs, *view.action_space.shape)
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(steps):
            view.step(rng.uniform(-0.2, 0.2, shape).astype(np.float32))
        if repeat > 0:  # the first warms up
            rates.append(steps * view.num_envs / (time.perf_counter() - start))
    return rates


def grown() -> Iterator[tuple[str, int, Instance]]:
    """(what grows, to what, the instance): one size at a time, the rest as in the reference instance."""
    for pages in (1000, 4000, 16_000):
        yield "live_pages", pages, replace(REFERENCE, live_pages=pages)
    for blocks in (1000, 10_000, 40_000):
        yield "cached_blocks", blocks, replace(REFERENCE, cached_blocks=blocks)
    for experts in (8, 32, 128):
        yield "groups", experts * REFERENCE.layers, replace(REFERENCE, experts=experts)
    for running in (4, 16, 64):
        yield "running", running, replace(REFERENCE, running=running)
    for iterations in (4.0, 16.0, 64.0):
        yield "iterations", int(iterations), replace(REFERENCE, iterations=iterations, audited=iterations)
