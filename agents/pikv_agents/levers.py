"""Levers: the actions that are learned. The others stay where the start put them.

Fewer levers learn faster: in a policy gradient every lever's exploration is noise to all others, and a step is as
long as the most cautious one allows. They also make agents of single levers, to tell what each is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from pikv_runtime.control_views import ControlView
from pikv_runtime.registry import UnknownNameError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Levers:
    """Which actions are learned, and what the others are."""

    columns: tuple[int, ...]
    """(K,) places among all actions."""
    rest: tuple[float, ...]
    """(A,) all actions; those of `columns` do not count."""

    def expand(self, actions: NDArray[Any]) -> Floats:
        """All actions (n, A) from the learned ones (n, K)."""
        full = np.tile(np.asarray(self.rest, np.float32), (len(actions), 1))
        full[:, self.columns] = actions
        return full

    def expand_layer(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """The action layer (K, H), (K,) as one of all actions (A, H), (A,): constant where nothing is learned."""
        wide = np.zeros((len(self.rest), weight.shape[1]), np.float32)
        all_bias = np.array(self.rest, np.float32)
        wide[list(self.columns)], all_bias[list(self.columns)] = weight, bias
        return wide, all_bias


def choose_levers(names: Sequence[str], view: ControlView, starts: Floats) -> Levers | None:
    """Levers by name, the other actions at the start's values; None where all are learned.

    Args:
        names: Actions of the `coef` view; empty: all. Other views learn all.
        view: Control view.
        starts: (S, A) what the start does in some situations.

    Raises:
        UnknownNameError: no such action.
        ValueError: the start changes an action that is not learned.
    """
    if not names or view.name != "coef":
        return None
    known = view.action_names()
    for name in names:
        if name not in known:
            raise UnknownNameError("lever", name, known)
    columns = tuple(known.index(name) for name in names)
    for column, spread in enumerate(np.ptp(starts, axis=0)):
        if spread > 1e-5 and column not in columns:
            raise ValueError(f"the start changes {known[column]!r}: it must be among the levers {list(names)}")
    return Levers(columns, tuple(float(a) for a in starts[0]))


class LeverEnv(VecEnvWrapper):
    """Lanes whose actions are the levers only."""

    def __init__(self, venv: VecEnv, levers: Levers) -> None:
        low, high = (bound[list(levers.columns)] for bound in (venv.action_space.low, venv.action_space.high))  # type: ignore[attr-defined]
        super().__init__(venv, action_space=spaces.Box(low, high))
        self.levers = levers

    def reset(self):  # type: ignore[no-untyped-def]
        """See `VecEnv.reset`."""
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        """See `VecEnv.step_async`."""
        self.venv.step_async(self.levers.expand(actions))

    def step_wait(self):  # type: ignore[no-untyped-def]
        """See `VecEnv.step_wait`."""
        return self.venv.step_wait()
