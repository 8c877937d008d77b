"""`PiKV/Trace-v0` for Stable-Baselines3: the batch behind its `VecEnv`, without a Python loop over lanes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from pikv_env.batch import TraceBatch
from pikv_env.builtin import make_config, resolve_library
from pikv_env.config import EnvConfig
from pikv_env.episode import PARTS, episode_info, interval_columns, reset_info, reset_lane
from pikv_env.pool import WorkloadPool
from pikv_env.rendering import RENDER_METADATA, Screen
from pikv_env.spaces import Actions, PolicySpaces
from pikv_env.terms import Description, describe
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.contract import Array

TRACE_ID = "PiKV/Trace-v0"
TRACE_IDS = (TRACE_ID, "PiKV/TraceConstrained-v0")
Indices = int | Iterable[int] | None


def make_sb3(env_id: str = TRACE_ID, num_envs: int = 1, **kwargs: Any) -> VecEnv:
    """An SB3 environment of `num_envs` lanes; `kwargs` as for `gymnasium.make`, for traces also `threads`."""
    name = env_id.removeprefix("pikv_env:")
    if name in TRACE_IDS:
        return TraceVecEnv(num_envs, **{**gym.spec(name).kwargs, **kwargs})
    return DummyVecEnv([lambda: gym.make(env_id, **kwargs) for _ in range(num_envs)])


class TraceVecEnv(VecEnv):  # type: ignore[misc]
    """`num_envs` episodes side by side; arguments as for `TraceEnv`, and `threads`.

    `env_method` calls the batch's lane methods (`get_state`, `set_state`, `reset_lane`, `score`); `get_attr` reads its
    attributes, a lane's own share of them where they have one (`parts`: latency, memory and loss of the last
    interval). An episode's end brings `episode_cost`, and `episode` (reward, length, time) without VecMonitor.
    `metadata` says which render modes there are, as SB3's video recorder wants it.
    """

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
        self._render_mode = render_mode
        self.screens = [Screen(render_mode) for _ in range(num_envs if render_mode is not None else 0)]
        self.batch = self._make_batch(resolve_library(library), num_envs, seed, pool, threads)
        self.spaces = PolicySpaces(self.config.control, self.batch.num_groups)
        self._returns = np.zeros(num_envs)
        self._start_s = time.monotonic()
        super().__init__(num_envs, self.spaces.observation_space, self.spaces.action_space)
        self.metadata = RENDER_METADATA

    def reset(self) -> Array:
        """Start an episode in every lane, under the options of `set_options`."""
        for i, options in enumerate(self._options):
            self._restart(i, options)
        self._reset_options()
        self._returns[:] = 0.0
        return self._observation()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Draw all later episodes from `seed`; lanes get independent streams of it."""
        if seed is not None:
            self.batch.seed(seed)
        return [seed] * self.num_envs

    def step_async(self, actions: Actions) -> None:
        """Decode `actions` (n, A) into controls."""
        batch = self.batch
        self.spaces.write(actions, batch.groups, batch.globals, batch.control_groups, batch.control_globals)

    def step_wait(self) -> tuple[Array, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Run one interval; lanes that are over start again, `terminal_observation` keeps their end."""
        rewards = self.batch.step()
        self._returns += rewards
        observation = self._observation()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if self.batch.constraints:
            self._tell_costs(infos)
        for lane, screen in enumerate(self.screens):
            screen.add(self.batch.state, lane, partial(self._objective, lane))
        dones = self.batch.done.copy()
        if dones.any():
            observation = self._end(observation, dones, infos)
        return observation, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Stop the batch's threads."""
        self.batch.close()

    def describe(self) -> Description:
        """Observation, action, reward and cost terms of a lane by name, with unit, range and meaning."""
        return describe(self.config, self.batch.num_groups)

    def get_images(self) -> list[Any]:
        """A picture of each lane, which `render` tiles; None where the render mode is another."""
        return [screen.render() if screen.mode == "rgb_array" else None for screen in self.screens]

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """The attribute for each lane of `indices`."""
        lanes = list(self._get_indices(indices))
        if attr_name == "render_mode":
            return [self._render_mode] * len(lanes)
        value = getattr(self.batch, attr_name)
        if isinstance(value, np.ndarray | list) and len(value) == self.num_envs:
            return [value[i] for i in lanes]
        return [value] * len(lanes)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Write a lane's share of an array of the batch."""
        array = getattr(self.batch, attr_name)
        if not isinstance(array, np.ndarray) or len(array) != self.num_envs:
            raise AttributeError(f"{attr_name!r} is common to all lanes: it cannot be set for some")
        for i in self._get_indices(indices):
            array[i] = value

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call the batch's method on each lane of `indices`."""
        method = getattr(self.batch, method_name)
        return [method(i, *method_args, **method_kwargs) for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Indices = None) -> list[bool]:
        """Never."""
        return [False for _ in self._get_indices(indices)]

    def _make_batch(
        self, library: TraceLibrary, num_envs: int, seed: int, pool: WorkloadPool | None, threads: int
    ) -> TraceBatch:
        return TraceBatch(library, self.config, num_envs, seed, pool, threads)

    def _end(self, last: Array, over: NDArray[np.bool_], infos: list[dict[str, Any]]) -> Array:
        """Describe and restart the lanes that are over; returns the observations after it."""
        elapsed_s = round(time.monotonic() - self._start_s, 6)
        for i in np.flatnonzero(over).tolist():
            episode = {"r": float(self._returns[i]), "l": int(self.batch.elapsed[i]), "t": elapsed_s}
            ended = {"terminal_observation": last[i], "TimeLimit.truncated": False, "episode": episode}
            infos[i] |= {**ended, **episode_info(self.batch, i)}
            self._returns[i] = 0.0
            self._restart(i, None)
        return self._observation()

    def _restart(self, i: int, options: dict[str, Any] | None) -> None:
        reset_lane(self.batch, i, options)
        self.reset_infos[i] = reset_info(self.batch, i)
        if self.screens:
            self.screens[i].restart(TRACE_ID, self.reset_infos[i], self.config.horizon_s, self.batch.state, i)

    def _objective(self, lane: int) -> float:
        return self.batch.score(lane).J

    def _tell_costs(self, infos: list[dict[str, Any]]) -> None:
        """Costs beside the reward, where safe-RL learners look for them."""
        told = {name: values.tolist() for name, values in interval_columns(self.batch).items() if name not in PARTS}
        for i, info in enumerate(infos):
            info.update((name, values[i]) for name, values in told.items())

    def _observation(self) -> Array:
        return self.spaces.observe(self.batch.groups, self.batch.globals)
