"""What a policy sees and may say: Gymnasium spaces over telemetry and a control view, by the batch."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pikv_runtime.contract import Array
from pikv_runtime.control_views import make_view, observation_names, observe
from pikv_runtime.views.base import GLOBAL_BOUNDS, GROUP_BOUNDS, Numbers
from pikv_runtime.views.discrete import DiscreteView

Actions = NDArray[np.float32] | NDArray[np.int64]


class PolicySpaces:
    """Observation and action space of the view `control` over `num_groups` groups, and how to use them."""

    def __init__(self, control: str, num_groups: int) -> None:
        self.control, self.num_groups = control, num_groups
        self.view = make_view(control, num_groups)
        self.observation_space: gym.Space[Array] = _observation_space(num_groups, self.view.observes_groups)
        self.action_space: gym.Space[Actions] = _action_space(self.view)
        self.names = observation_names(num_groups, control)

    def observe(self, groups: Array, globals_: Array) -> Array:
        """Telemetry (n, N, F) and (n, G) as fresh observations (n, D), float32, inside the space."""
        return observe(groups, globals_, view=self.control)

    def write(self, actions: Numbers, groups: Array, globals_: Array, out_groups: Array, out_globals: Array) -> None:
        """Write the controls (n, N, 3) and (n, 17) that `actions` (n, A) ask for under this telemetry.

        Raises:
            ValueError: the actions have another shape, or choose what is not on the grid.
        """
        actions = np.asarray(actions)
        expected = (len(groups), self.view.num_actions)
        if actions.shape != expected:
            raise ValueError(f"actions have shape {actions.shape}, view {self.control!r} wants {expected}")
        if isinstance(self.view, DiscreteView):
            if not np.all((actions >= 0) & (actions < self.view.nvec) & (actions == np.floor(actions))):  # NaN, too
                raise ValueError(f"a choice is off the grid: allowed 0 to below {self.view.nvec.tolist()}")
        else:
            actions = np.clip(actions.astype(np.float32), -1.0, 1.0)
        self.view.decode(actions, groups, globals_, out_groups, out_globals)


def _observation_space(num_groups: int, every_group: bool) -> gym.Space[Array]:
    """Finite bounds from the contract: globals, mean and maximum over groups, then perhaps every group."""
    times = 2 + every_group * num_groups
    low = np.concatenate([GLOBAL_BOUNDS[0], np.tile(GROUP_BOUNDS[0], times)])
    high = np.concatenate([GLOBAL_BOUNDS[1], np.tile(GROUP_BOUNDS[1], times)])
    return spaces.Box(low, high, dtype=np.float32)


def _action_space(view: object) -> gym.Space[Actions]:
    if isinstance(view, DiscreteView):
        return spaces.MultiDiscrete(view.nvec)
    return spaces.Box(view.action_low, view.action_high, dtype=np.float32)  # type: ignore[attr-defined]
