"""`PiKV/Trace-v0`, many environments: the batch behind `gymnasium.vector.VectorEnv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from pikv_env.batch import TraceBatch
from pikv_env.builtin import make_config, resolve_library
from pikv_env.config import EnvConfig
from pikv_env.episode import episode_info, interval_columns, reset_info, reset_lane
from pikv_env.pool import WorkloadPool
from pikv_env.rendering import RENDER_METADATA, Screen
from pikv_env.spaces import Actions, PolicySpaces
from pikv_env.specification import Specified
from pikv_env.terms import Description, describe
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.contract import Array

Seeds = int | Sequence[int | None] | None


def seed_lanes(batch: TraceBatch, seed: Seeds) -> None:
    """One number: independent streams of it. A sequence: lane i draws as a single environment of seed[i]."""
    if seed is None:
        return
    if isinstance(seed, int | np.integer):
        batch.seed(int(seed))
        return
    if len(seed) != batch.num_envs:
        raise ValueError(f"{len(seed)} seeds for {batch.num_envs} lanes")
    for i, own in enumerate(seed):
        if own is not None:
            batch.seed_lane(i, int(own))


class TraceVectorEnv(Specified, VectorEnv[Array, Actions, NDArray[np.float64]]):
    """`num_envs` episodes side by side; arguments as for `TraceEnv`, and `threads`."""

    metadata = {**RENDER_METADATA, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium's own

    def __init__(
        self,
        num_envs: int = 1,
        library: TraceLibrary | str | Path | None = None,
        *,
        config: EnvConfig | Mapping[str, Any] | None = None,
        seed: int = 0,
        pool: WorkloadPool | None = None,
        threads: int = 1,
        render_mode: str | None = None,
        **fields: Any,
    ) -> None:
        self.config = make_config(config, **fields)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.screens = [Screen(render_mode) for _ in range(num_envs if render_mode is not None else 0)]
        self.batch = TraceBatch(resolve_library(library), self.config, num_envs, seed, pool, threads)
        self.spaces = PolicySpaces(self.config.control, self.batch.num_groups)
        self.single_observation_space = self.spaces.observation_space
        self.single_action_space = self.spaces.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every lane (or those of `options["reset_mask"]`), under the same options."""
        given = dict(options or {})
        mask = np.asarray(given.pop("reset_mask", np.ones(self.num_envs, np.bool_)))
        if isinstance(seed, int):
            super().reset(seed=seed)
        seed_lanes(self.batch, seed)
        info: dict[str, Any] = {}
        for i in np.flatnonzero(mask).tolist():
            self._restart(i, given)
            info = self._add_info(info, reset_info(self.batch, i), i)
        return self._observation(), info

    def step(  # type: ignore[override]  # Gymnasium types its flags as floats
        self, actions: Actions
    ) -> tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Run one interval; lanes that are over start again, `info["final_obs"]` keeps their end."""
        batch = self.batch
        self.spaces.write(actions, batch.groups, batch.globals, batch.control_groups, batch.control_globals)
        rewards = batch.step()
        every = np.ones(self.num_envs, np.bool_)
        info: dict[str, Any] = {}
        for name, values in interval_columns(batch).items():
            info[name], info[f"_{name}"] = values, every
        for lane, screen in enumerate(self.screens):
            screen.add(batch.state, lane, partial(self._objective, lane))
        terminated = batch.done.copy()
        if terminated.any():
            info = self._end(info, terminated)
        return self._observation(), rewards, terminated, np.zeros(self.num_envs, np.bool_), info

    def describe(self) -> Description:
        """Observation, action, reward and cost terms of a lane by name, with unit, range and meaning."""
        return describe(self.config, self.batch.num_groups)

    @property
    def cost_limits(self) -> dict[str, float]:
        """What may be spent in an episode, by constraint; empty without constraints."""
        return dict(self.batch.constraints.limits)

    def render(self) -> tuple[Any, ...] | None:
        """One picture for each lane, see `TraceEnv.render`; None without a render mode.

        A lane whose episode has just ended shows the start of its next one.
        """
        return tuple(screen.render() for screen in self.screens) if self.screens else None

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the batch's threads."""
        self.batch.close()

    def _objective(self, lane: int) -> float:
        return self.batch.score(lane).J

    def _end(self, info: dict[str, Any], over: NDArray[np.bool_]) -> dict[str, Any]:
        last = self._observation()
        for i in np.flatnonzero(over).tolist():
            end = {"final_obs": last[i], "final_info": episode_info(self.batch, i)}
            info = self._add_info(info, end, i)
            self._restart(i, None)
        return info

    def _restart(self, i: int, options: dict[str, Any] | None) -> None:
        reset_lane(self.batch, i, options)
        if self.screens:
            episode = reset_info(self.batch, i)
            self.screens[i].restart("PiKV/Trace-v0", episode, self.config.horizon_s, self.batch.state, i)

    def _observation(self) -> Array:
        return self.spaces.observe(self.batch.groups, self.batch.globals)
