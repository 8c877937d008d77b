"""PiKV environments: importing this registers `PiKV/Trace-v0`, `PiKV/Runtime-v0` and variants of both."""

from __future__ import annotations

import importlib
from typing import Any

from gymnasium.envs.registration import register

# Name -> module: resolved on first use, so that registering costs neither torch nor numba.
_EXPORTS = {
    "EnvConfig": "pikv_env.config",
    "EpisodeRecord": "pikv_env.episode_record",
    "EpisodeRecorder": "pikv_env.episode_record",
    "RecordEpisodes": "pikv_env.record_wrapper",
    "Replayer": "pikv_env.replay",
    "TraceBatch": "pikv_env.batch",
    "TraceEnv": "pikv_env.trace_env",
    "TraceLibrary": "pikv_env.traces",
    "TraceVecEnv": "pikv_env.sb3",
    "TraceVectorEnv": "pikv_env.vector",
    "WorkloadPool": "pikv_env.pool",
    "make_sb3": "pikv_env.sb3",
}
__all__ = [*_EXPORTS]

register(
    "PiKV/Trace-v0",
    entry_point="pikv_env.trace_env:TraceEnv",
    vector_entry_point="pikv_env.vector:TraceVectorEnv",
)
register(
    "PiKV/TraceConstrained-v0",
    entry_point="pikv_env.trace_env:TraceEnv",
    vector_entry_point="pikv_env.vector:TraceVectorEnv",
    # Of the training families, those whose bursts leave the objectives within reach.
    kwargs={"fidelity_floor": 0.95, "slo": 0.9, "families": ("facts-poisson", "code-bursty", "prose-diurnal")},
)
register("PiKV/Runtime-v0", entry_point="pikv_env.runtime_env:RuntimeEnv")
register(
    "PiKV/RuntimeWall-v0",
    entry_point="pikv_env.runtime_env:RuntimeEnv",
    kwargs={"clock": "wall"},
    nondeterministic=True,
)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pikv_env' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
