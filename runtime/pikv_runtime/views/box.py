"""The `box` view: every number of the control by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pikv_runtime.contract import GLOBAL_CONTROLS, GROUP_CONTROLS, Array
from pikv_runtime.views.base import (
    CONTROL_GLOBAL_BOUNDS,
    CONTROL_GROUP_BOUNDS,
    ControlView,
    Numbers,
    from_unit,
    to_unit,
)


@dataclass(frozen=True)
class BoxView(ControlView):
    """Every number of the control, 3N + 17, mapped affinely from [-1, 1] to its range. For one N only."""

    name: ClassVar[str] = "box"
    observes_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_groups is None or self.num_groups < 1:
            raise ValueError(f"view 'box': num_groups={self.num_groups}: must be at least 1")

    def action_names(self, num_groups: int | None = None) -> list[str]:
        """Group by group, then the globals."""
        count = self.num_groups if num_groups is None else num_groups
        names = [f"group{g}.{c.name}" for g in range(count or 0) for c in GROUP_CONTROLS]
        return names + [c.name for c in GLOBAL_CONTROLS]

    def decode(self, actions: Numbers, groups: Array, globals_: Array, out_groups: Array, out_globals: Array) -> None:
        """See `ControlView.decode`."""
        split = out_groups.shape[1] * len(GROUP_CONTROLS)
        if actions.shape[1] != split + len(GLOBAL_CONTROLS):
            raise ValueError(
                f"view 'box': {actions.shape[1]} actions, allowed {split + len(GLOBAL_CONTROLS)} "
                f"for {out_groups.shape[1]} groups"
            )
        out_groups[:] = from_unit(actions[:, :split].reshape(out_groups.shape), CONTROL_GROUP_BOUNDS)
        out_globals[:] = from_unit(actions[:, split:], CONTROL_GLOBAL_BOUNDS)

    def encode(self, groups: Array, globals_: Array) -> Numbers:
        """Exact for every legal control."""
        units = to_unit(groups, CONTROL_GROUP_BOUNDS).reshape(len(groups), -1)
        return np.concatenate([units, to_unit(globals_, CONTROL_GLOBAL_BOUNDS)], axis=1).astype(np.float32)
