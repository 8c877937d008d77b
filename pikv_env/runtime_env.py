"""`PiKV/Runtime-v0`: the live engine behind `gymnasium.Env`; a step is one control interval of real serving.

Episodes are drawn exactly as in `PiKV/Trace-v0`: the same seed gives the same workload, cap and λ's in both. On the
model clock the environment is deterministic; on the wall clock time is measured (`PiKV/RuntimeWall-v0`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from pikv_env.batch import TraceBatch
from pikv_env.builtin import make_config, resolve_library
from pikv_env.config import EnvConfig
from pikv_env.constraints import CONSTRAINTS
from pikv_env.episode import PARTS, costs_by_name, reset_info, reset_lane, total_costs
from pikv_env.pool import WorkloadPool
from pikv_env.rendering import RENDER_METADATA, Screen
from pikv_env.spaces import Actions, PolicySpaces
from pikv_env.specification import Specified
from pikv_env.terms import Description, describe
from pikv_env.traces.library import TraceLibrary
from pikv_env.workloads.families import check_text
from pikv_runtime.contract import Array, Control, Telemetry, clip_control
from pikv_runtime.costs import CostBreakdown
from pikv_runtime.engine import Engine
from pikv_runtime.objective import charges, denominators, weigh
from pikv_runtime.transport import Transport

# Live serving costs real seconds: a few minutes of model time make a useful episode.
LIVE = EnvConfig(horizon_s=60.0, workloads=2)


class RuntimeEnv(Specified, gym.Env[Array, Actions]):
    """Serving with a real MoE model.

    Args:
        library: recorded traces, whose prompts are served: a library, its file, or None for the built-in one.
        model: `"embedded"`, a folder in Hugging Face format, or a loaded model.
        clock: `"model"` or `"wall"`.
        signals: `"live"`: tags and attention mass come from the forward pass; `"recorded"`: from the library.
        config: what episodes are made of (by default a minute of arrivals).
        seed, pool: as for `TraceEnv`.
        transport: ranks in other processes; by default this process plays `ranks` virtual ones.
        render_mode: None, "rgb_array" (an image) or "ansi" (text).
        **fields: fields of `EnvConfig` to change.
    """

    metadata = RENDER_METADATA

    def __init__(
        self,
        library: TraceLibrary | str | Path | None = None,
        *,
        model: Any = "embedded",
        clock: Literal["model", "wall"] = "model",
        signals: Literal["live", "recorded"] = "live",
        config: EnvConfig | Mapping[str, Any] | None = None,
        seed: int = 0,
        pool: WorkloadPool | None = None,
        transport: Transport | None = None,
        render_mode: str | None = None,
        **fields: Any,
    ) -> None:
        for name, value, allowed in (("signals", signals, ("live", "recorded")), ("clock", clock, ("model", "wall"))):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: allowed are {allowed[0]!r} and {allowed[1]!r}")
        self.config = make_config(config, LIVE, **fields)
        if signals == "live":
            check_text(self.config.families)
        if transport is not None and transport.world != self.config.ranks:
            raise ValueError(f"the transport has {transport.world} ranks, the configuration {self.config.ranks}")
        self.render_mode, self.screen = render_mode, Screen(render_mode)
        # Draws episodes, runs their reference U; never stepped.
        self.batch = TraceBatch(resolve_library(library), self.config, 1, seed, pool)
        if isinstance(model, str):
            from pikv_runtime.models import load_model

            model = load_model(model)[0]
        self._check_shape(model)
        self._make = {"model": model, "clock": clock, "transport": transport, "ranks": self.config.ranks}
        self._recorded = signals == "recorded"
        self.engine: Engine | None = None
        self._over = True
        self.spaces = PolicySpaces(self.config.control, self.batch.num_groups)
        self.observation_space = self.spaces.observation_space
        self.action_space = self.spaces.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode; options as for `PiKV/Trace-v0`."""
        super().reset(seed=seed)
        if seed is not None:
            self.batch.seed_lane(0, seed)
        reset_lane(self.batch, 0, options)
        prepared = self.batch.prepared(0)
        cap, lambdas = int(self.batch.state.cap_bytes[0]), self.batch.state.lambdas[0]
        self.engine = Engine(
            config=replace(
                self.config.runtime,
                cap_bytes=cap,
                host_bytes=self.config.host_bytes(cap),
                blocks=self.batch.pool.blocks,
            ),
            prices=self.batch.pool.prices,
            signals=self.batch.bank if self._recorded else None,
            lambdas=(float(lambdas[0]), float(lambdas[1])),
            **self._make,
        )
        self.engine.load(prepared.workload, prepared.reference, pages=self.batch.pool.pages)
        self.engine.measure()
        self._scale = denominators(prepared.reference, float(cap) * self.config.ranks)
        self._before = self.engine.ledger.tally[0].copy()
        self._control = Control.neutral(self.batch.num_groups)
        self._spent = np.zeros(len(CONSTRAINTS))
        self._over = False
        info = reset_info(self.batch, 0)
        self.screen.restart("PiKV/Runtime-v0", info, self.config.horizon_s, self.engine.ledger)
        return self._observation(), info

    def step(self, action: Actions) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Ask for the control of the next interval and serve it."""
        told, control = self._engine.telemetry(), self._control
        self.spaces.write(
            np.asarray(action)[None], told.groups[None], told.globals[None], control.groups[None], control.globals[None]
        )
        return self.step_control(control)

    def step_control(self, control: Control) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Like `step`, with the contract's own control."""
        engine, control = self._engine, control.copy()
        if self._over:
            raise ResetNeeded("the episode is over: call reset()")
        clip_control(control)
        engine.enforce(control)
        self._over = engine.run_interval(self.config.horizon_s * (1 + self.config.drain))
        engine.measure()
        if self._over:
            engine.close()
        tally = engine.ledger.tally[0]
        parts = charges(tally - self._before, self._scale)
        self._before = tally.copy()
        lambdas = engine.ledger.lambdas[0]
        charge = float(weigh(parts, lambdas))
        info: dict[str, Any] = dict(zip(PARTS, (charge, *parts.tolist()), strict=True))
        info |= self._interval_costs()
        self.screen.add(engine.ledger, 0, lambda: engine.score().J)
        if self._over:
            info["episode_cost"] = self._episode_cost()
        reward = -float(weigh(parts * self.batch.constraints.rewarded, lambdas))
        return self._observation(), reward, self._over, False, info

    @property
    def telemetry(self) -> Telemetry:
        """Telemetry of the interval just ended (a copy)."""
        told = self._engine.telemetry()
        return Telemetry(told.groups.copy(), told.globals.copy())

    def costs(self) -> CostBreakdown:
        """The episode so far in physical units."""
        breakdown: CostBreakdown = self._engine.costs()
        return breakdown

    def describe(self) -> Description:
        """Observation, action, reward and cost terms by name, with unit, range and meaning; `print` it."""
        return describe(self.config, self.batch.num_groups)

    @property
    def cost_limits(self) -> dict[str, float]:
        """What may be spent in an episode, by constraint; empty without constraints."""
        return dict(self.batch.constraints.limits)

    def render(self) -> Any:
        """The cache so far, (720, 1280, 3) uint8 or text by `render_mode`; None without one."""
        return self.screen.render()

    def close(self) -> None:
        """Let go of the engine."""
        self.engine = None
        self.batch.close()

    @property
    def _engine(self) -> Engine:
        if self.engine is None:
            raise ResetNeeded("no episode was started: call reset()")
        return self.engine

    def _check_shape(self, model: Any) -> None:
        """Caps and U follow from the configured geometry, the live ledger from the model: they must agree."""
        from pikv_runtime.models.runner import geometry_of_model

        found, wanted = geometry_of_model(model), self.batch.pool.shape
        if self.config.token_scale != 1:
            raise ValueError(
                f"token_scale={self.config.token_scale}: a live model serves its own tokens, only 1 is allowed"
            )
        if found.shape(self.config.runtime.page_tokens) != wanted:
            raise ValueError(
                f"the model is not of geometry {self.config.geometry!r}, which prices the workloads: {found}"
            )

    def _interval_costs(self) -> dict[str, float]:
        """Costs of the interval just ended, and what it spent; see `constraints.py`."""
        constraints, before = self.batch.constraints, self._spent
        if not constraints:
            return {}
        over = np.array([self._over])
        self._spent = constraints.spent(self._engine.ledger, self._scale[2:], over)[0]
        return costs_by_name(constraints, constraints.costs(before, self._spent), self._spent - before)

    def _episode_cost(self) -> dict[str, Any]:
        score = self._engine.score()
        return {
            "J": score.J,
            "latency": score.latency,
            "memory": score.memory,
            "loss": score.loss,
            "lambda1": score.lambda1,
            "lambda2": score.lambda2,
            **total_costs(self.batch.constraints, self._spent),
            **self.costs().counters,
        }

    def _observation(self) -> Array:
        told = self._engine.telemetry()
        return self.spaces.observe(told.groups[None], told.globals[None])[0]
