"""The `discrete` view: a small documented grid, the same for all groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.contract import Array, Control, GlobalControl, GroupControl
from pikv_runtime.rankers import RANKERS, ranker_weights
from pikv_runtime.views.base import ControlView, Numbers

DISCRETE_GRID: tuple[tuple[str, tuple[float | str, ...]], ...] = (
    ("compression_ratio", (1.0, 2.0, 3.0, 4.0)),
    ("evict_fraction", (0.0, 0.1, 0.25)),
    ("fan_out", (0.1, 0.25, 0.5, 1.0)),
    ("cached_share", (0.1, 0.4, 1.0)),
    ("r_pressure", (1.0, 2.0, 4.0)),
    ("ranker", ("lru", "h2o", "streaming_llm")),
)
"""Choices, the same for all groups; r_pressure 1 means no demotion. Everything else stays neutral."""

_NUMBER_GRID = {
    name: np.array([v for v in values if isinstance(v, float)], np.float32) for name, values in DISCRETE_GRID
}
_RANKER_GRID = [str(v) for v in DISCRETE_GRID[-1][1]]
_RANKER_WEIGHTS = np.stack([ranker_weights(name) for name in _RANKER_GRID])
_PAGE_WEIGHTS = np.array([RANKERS[name] for name in _RANKER_GRID], np.float32)
_NEUTRAL = Control.neutral(1)


@dataclass(frozen=True)
class DiscreteView(ControlView):
    """One choice per head on `DISCRETE_GRID`; the identity on that grid."""

    name: ClassVar[str] = "discrete"

    @property
    def nvec(self) -> NDArray[np.int64]:
        """Choices per head, as MultiDiscrete wants them."""
        return np.array([len(values) for _, values in DISCRETE_GRID], np.int64)

    @property
    def num_outputs(self) -> int:
        """One logit per choice."""
        return int(self.nvec.sum())

    def action_names(self, num_groups: int | None = None) -> list[str]:
        """The heads' names."""
        return [name for name, _ in DISCRETE_GRID]

    def act(self, outputs: Numbers) -> Numbers:
        """The likeliest choice of every head; the first of equals."""
        heads = np.split(outputs, np.cumsum(self.nvec)[:-1], axis=1)
        return np.stack([head.argmax(axis=1) for head in heads], axis=1)

    def decode(self, actions: Numbers, groups: Array, globals_: Array, out_groups: Array, out_globals: Array) -> None:
        """See `ControlView.decode`."""
        choice = np.asarray(actions).astype(np.int64).T
        value = {name: _NUMBER_GRID[name][choice[h]] for h, (name, _) in enumerate(DISCRETE_GRID[:-1])}
        out_groups[..., GroupControl.ROUTING_BIAS] = 0.0
        out_groups[..., GroupControl.COMPRESSION_RATIO] = value["compression_ratio"][:, None]
        out_groups[..., GroupControl.EVICT_FRACTION] = value["evict_fraction"][:, None]
        out_globals[:] = _NEUTRAL.globals
        out_globals[:, GlobalControl.FAN_OUT] = value["fan_out"]
        out_globals[:, GlobalControl.CACHED_SHARE] = value["cached_share"]
        out_globals[:, GlobalControl.R_PRESSURE] = value["r_pressure"]
        out_globals[:, GlobalControl.PAGE_RECENCY :] = _RANKER_WEIGHTS[choice[-1]]

    def encode(self, groups: Array, globals_: Array) -> Numbers:
        """The nearest point of the grid, head by head."""
        asked = {
            "compression_ratio": groups[..., GroupControl.COMPRESSION_RATIO].mean(axis=1),
            "evict_fraction": groups[..., GroupControl.EVICT_FRACTION].mean(axis=1),
            "fan_out": globals_[:, GlobalControl.FAN_OUT],
            "cached_share": globals_[:, GlobalControl.CACHED_SHARE],
            "r_pressure": globals_[:, GlobalControl.R_PRESSURE],
        }
        heads = [np.abs(v[:, None] - _NUMBER_GRID[name]).argmin(axis=1) for name, v in asked.items()]
        pages = globals_[:, None, GlobalControl.PAGE_RECENCY : GlobalControl.BLOCK_RECENCY]
        heads.append(np.abs(pages - _PAGE_WEIGHTS).sum(axis=2).argmin(axis=1))
        return np.stack(heads, axis=1)
