"""`PiKV/Trace-v0`, one environment: a batch of one lane behind `gymnasium.Env`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from pikv_env.batch import TraceBatch
from pikv_env.builtin import make_config, resolve_library
from pikv_env.config import EnvConfig
from pikv_env.episode import costs, episode_info, interval_info, reset_info, reset_lane
from pikv_env.pool import WorkloadPool
from pikv_env.rendering import RENDER_METADATA, Screen
from pikv_env.snapshot import LaneState
from pikv_env.spaces import Actions, PolicySpaces
from pikv_env.specification import Specified
from pikv_env.terms import Description, describe
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.contract import Array, Control, Telemetry
from pikv_runtime.costs import CostBreakdown


class TraceEnv(Specified, gym.Env[Array, Actions]):
    """One serving episode; a step is one control interval.

    Args:
        library: recorded traces, their file, or None for the built-in ones.
        config: what episodes are made of; a mapping of its fields will do.
        seed: the pool of workloads, and (until `reset` is given a seed) the episodes, derive from it.
        pool: prepared workloads to share with other environments.
        render_mode: None, "rgb_array" (an image) or "ansi" (text).
        **fields: fields of `EnvConfig` to change; a number stands for a range of equal ends.
    """

    metadata = RENDER_METADATA

    def __init__(
        self,
        library: TraceLibrary | str | Path | None = None,
        *,
        config: EnvConfig | Mapping[str, Any] | None = None,
        seed: int = 0,
        pool: WorkloadPool | None = None,
        render_mode: str | None = None,
        **fields: Any,
    ) -> None:
        self.config = make_config(config, **fields)
        self.render_mode, self.screen = render_mode, Screen(render_mode)
        self.batch = TraceBatch(resolve_library(library), self.config, 1, seed, pool)
        self.batch.done[0] = True  # no episode yet
        self.spaces = PolicySpaces(self.config.control, self.batch.num_groups)
        self.observation_space = self.spaces.observation_space
        self.action_space = self.spaces.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode. `options`: workload, pressure, lambdas; see `docs/environments.md`."""
        super().reset(seed=seed)
        if seed is not None:
            self.batch.seed_lane(0, seed)
        reset_lane(self.batch, 0, options)
        info = reset_info(self.batch, 0)
        self.screen.restart("PiKV/Trace-v0", info, self.config.horizon_s, self.batch.state)
        return self._observation(), info

    def step(self, action: Actions) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Ask for the control of the next interval and run it."""
        batch = self.batch
        if batch.done[0]:
            raise ResetNeeded("the episode is over (or none was started): call reset()")
        actions = np.asarray(action)[None]
        self.spaces.write(actions, batch.groups, batch.globals, batch.control_groups, batch.control_globals)
        return self._advance()

    def step_control(self, control: Control) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Like `step`, with the contract's own control: what heuristics and bundles say, free of any view."""
        if self.batch.done[0]:
            raise ResetNeeded("the episode is over (or none was started): call reset()")
        self.batch.control_groups[0] = control.groups
        self.batch.control_globals[0] = control.globals
        return self._advance()

    @property
    def telemetry(self) -> Telemetry:
        """Telemetry of the interval just ended (a copy)."""
        return Telemetry(self.batch.groups[0].copy(), self.batch.globals[0].copy())

    def costs(self) -> CostBreakdown:
        """The episode so far in physical units."""
        return costs(self.batch, 0)

    def describe(self) -> Description:
        """Observation, action, reward and cost terms by name, with unit, range and meaning; `print` it."""
        return describe(self.config, self.batch.num_groups)

    @property
    def cost_limits(self) -> dict[str, float]:
        """What may be spent in an episode, by constraint; empty without constraints."""
        return dict(self.batch.constraints.limits)

    def get_state(self) -> LaneState:
        """A copy of everything that decides how the episode, and those after it, go on."""
        return self.batch.get_state(0)

    def set_state(self, state: LaneState) -> Array:
        """Go back (or over) to `state`; returns the observation there. A film goes on from here."""
        self.batch.set_state(0, state)
        return self._observation()

    def fork(self) -> TraceEnv:
        """An environment of its own that goes on exactly as this one would; it shares the prepared workloads."""
        twin = type(self)(self.batch.pool.library, config=self.config, pool=self.batch.pool)
        twin.spec = self.spec
        twin.batch.set_state(0, self.get_state())
        return twin

    def render(self) -> Any:
        """The cache so far, (720, 1280, 3) uint8 or text by `render_mode`; None without one."""
        return self.screen.render()

    def close(self) -> None:
        """Nothing is held."""
        self.batch.close()

    def _advance(self) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        reward = float(self.batch.step()[0])
        info: dict[str, Any] = interval_info(self.batch, 0)
        done = bool(self.batch.done[0])
        self.screen.add(self.batch.state, 0, lambda: self.batch.score(0).J)
        if done:
            info.update(episode_info(self.batch, 0))
        return self._observation(), reward, done, False, info

    def _observation(self) -> Array:
        return self.spaces.observe(self.batch.groups, self.batch.globals)[0]
