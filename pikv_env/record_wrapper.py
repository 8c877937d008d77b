"""`RecordEpisodes`: a Gymnasium wrapper that writes an `EpisodeRecord` of every episode that is played to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from pikv_env.episode_record import EpisodeRecord, EpisodeRecorder
from pikv_env.spaces import Actions
from pikv_env.trace_env import TraceEnv
from pikv_runtime.contract import Array, Control

Stepped = tuple[Array, float, bool, bool, dict[str, Any]]


class RecordEpisodes(gym.Wrapper[Array, Actions, Array, Actions], RecordConstructorArgs):
    """Write each finished episode to `folder`, which `pikv evaluate --replay` plays again.

    Args:
        env: `PiKV/Trace-v0` or a variant of it, however wrapped.
        folder: made if it is not there; `info["record"]` at an episode's end is the path of its file.
        policy: who plays; written into the records.

    Raises:
        ValueError: the environment is another one.
    """

    def __init__(self, env: gym.Env[Array, Actions], folder: str | Path, policy: str = "") -> None:
        RecordConstructorArgs.__init__(self, folder=str(folder), policy=policy)
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.unwrapped, TraceEnv):
            raise ValueError(f"{type(env.unwrapped).__name__} cannot be recorded: allowed is PiKV/Trace-v0")
        self.core, self.folder, self.policy = env.unwrapped, Path(folder), policy
        self._recorder: EpisodeRecorder | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """See `TraceEnv.reset`."""
        found = self.env.reset(seed=seed, options=options)
        self._recorder = EpisodeRecorder(self.core.batch, 0, self.policy)
        return found

    def step(self, action: Actions) -> Stepped:
        """See `TraceEnv.step`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._keep((observation, float(reward), terminated, truncated, info))

    def step_control(self, control: Control) -> Stepped:
        """See `TraceEnv.step_control`."""
        return self._keep(self.core.step_control(control))

    def _keep(self, stepped: Stepped) -> Stepped:
        if self._recorder is not None:
            self._recorder.add()
            if stepped[2]:
                stepped[4]["record"] = str(write_record(self._recorder.record(), self.folder))
                self._recorder = None
        return stepped


def write_record(record: EpisodeRecord, folder: Path) -> Path:
    """Write `record` into `folder` under a name that says what it is of, numbered where there is one; its path."""
    episode, policy = record.header["episode"], record.header["policy"] or "policy"
    plain = "".join(c if c.isalnum() or c in "._=-" else "-" for c in policy)[:80]
    stem = f"{episode['family']}-{episode['workload_seed']}-p{episode['pressure']:.3g}-{plain}"
    path, number = folder / f"{stem}.npz", 1
    while path.exists():
        path, number = folder / f"{stem}-{number}.npz", number + 1
    record.save(path)
    return path
