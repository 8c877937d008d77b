"""The `coef` view: a group's controls are functions of its features, with shared coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pikv_runtime.contract import (
    EVICT_MAX,
    GLOBAL_CONTROLS,
    GROUP_CONTROLS,
    RATIO_MAX,
    Array,
    GlobalControl,
    GroupControl,
    GroupFeature,
)
from pikv_runtime.views.base import (
    CONTROL_GLOBAL_BOUNDS,
    GROUP_BOUNDS,
    ControlView,
    Numbers,
    from_unit,
    sanitise,
    to_unit,
)

COEF_BASIS = (
    ("bias", None, 0.0, 1.0),
    ("mass_density", GroupFeature.MASS_DENSITY, 0.25, 0.0),
    ("recency", GroupFeature.RECENCY, 0.25, 0.0),
    ("layer_position", GroupFeature.LAYER_POSITION, 2.0, -1.0),
    ("codec_error", GroupFeature.CODEC_ERROR, 1.0, 0.0),
    ("ghost_share", GroupFeature.GHOST_SHARE, 1.0, 0.0),
    ("miss_rate", GroupFeature.MISS_RATE, 1.0, 0.0),
    ("routing_share", GroupFeature.ROUTING_SHARE, 1.0, 0.0),
)
"""What a group's controls are linear in before the tanh: (name, column, scale, shift)."""

COEF_TERMS = (
    (GroupControl.COMPRESSION_RATIO, ("bias", "mass_density", "recency", "codec_error", "layer_position")),
    (GroupControl.EVICT_FRACTION, ("bias", "mass_density", "recency", "ghost_share", "layer_position")),
    (GroupControl.ROUTING_BIAS, ("miss_rate", "mass_density", "routing_share")),
)
"""The coefficients, in the order of the action vector."""

COEF_GAIN = 2.0
COEF_SATURATION = 0.96
"""A bias of ±1 alone gives tanh(±2) = ±0.964: dividing by a little less, then clipping, lets it reach both
ends exactly (ratio 1 must be within reach: nothing lossy happens unless asked)."""

_BASIS_NAMES = [name for name, *_ in COEF_BASIS]
_TERMS = [(_BASIS_NAMES.index(term), int(column)) for column, terms in COEF_TERMS for term in terms]
TERM_ROWS, TERM_COLUMNS = (list(part) for part in zip(*_TERMS, strict=True))
COEF_TERM_COUNT = len(_TERMS)
_BASIS_COLUMNS = [int(column) for _, column, _, _ in COEF_BASIS if column is not None]
_BASIS_SCALE = np.array([scale for _, column, scale, _ in COEF_BASIS if column is not None], np.float32)
_BASIS_SHIFT = np.array([shift for _, column, _, shift in COEF_BASIS if column is not None], np.float32)


@dataclass(frozen=True)
class CoefView(ControlView):
    """Coefficients: a group's value is tanh(2 w · its features).

    Serves any number of groups and is equivariant to their permutations.
    """

    name: ClassVar[str] = "coef"

    def action_names(self, num_groups: int | None = None) -> list[str]:
        """30 names, whatever the number of groups."""
        names = [f"{column.name.lower()}.{term}" for column, terms in COEF_TERMS for term in terms]
        return names + [c.name for c in GLOBAL_CONTROLS]

    def decode(self, actions: Numbers, groups: Array, globals_: Array, out_groups: Array, out_globals: Array) -> None:
        """See `ControlView.decode`."""
        weights = np.zeros((len(groups), len(COEF_BASIS), len(GROUP_CONTROLS)), actions.dtype)
        weights[:, TERM_ROWS, TERM_COLUMNS] = actions[:, :COEF_TERM_COUNT]
        # Biases alone (few levers learn anything else) say the same of every group: no features are needed.
        said = _basis(groups, actions.dtype) @ weights if weights[:, 1:].any() else weights[:, :1]
        value = np.tanh(COEF_GAIN * said)
        out_groups[..., GroupControl.ROUTING_BIAS] = value[..., GroupControl.ROUTING_BIAS]
        value = np.clip(value / COEF_SATURATION, -1.0, 1.0)
        out_groups[..., GroupControl.COMPRESSION_RATIO] = (
            1 + (RATIO_MAX - 1) * (value[..., GroupControl.COMPRESSION_RATIO] + 1) / 2
        )
        out_groups[..., GroupControl.EVICT_FRACTION] = EVICT_MAX * np.maximum(
            value[..., GroupControl.EVICT_FRACTION], 0
        )
        _decode_globals(actions[:, COEF_TERM_COUNT:], out_globals)

    def encode(self, groups: Array, globals_: Array) -> Numbers:
        """Biases only: exact for controls that are the same for all groups and leave routing alone."""
        actions = np.zeros((len(groups), self.num_actions), np.float32)
        mean = groups.mean(axis=1)
        ratio = 2 * (mean[:, GroupControl.COMPRESSION_RATIO] - 1) / (RATIO_MAX - 1) - 1
        evict = mean[:, GroupControl.EVICT_FRACTION] / EVICT_MAX
        starts = [0, len(COEF_TERMS[0][1])]
        for start, unit in zip(starts, (ratio, evict), strict=True):
            actions[:, start] = np.arctanh(COEF_SATURATION * unit) / COEF_GAIN
        # At an end the clip hides the slope: ask for the end itself, with room to spare.
        actions[:, 0] = np.where(np.abs(ratio) >= 1, ratio, actions[:, 0])
        actions[:, starts[1]] = np.where(evict >= 1, 1, actions[:, starts[1]])
        units = to_unit(globals_, CONTROL_GLOBAL_BOUNDS)
        window = GlobalControl.WINDOW
        low, high = GLOBAL_CONTROLS[window].low, GLOBAL_CONTROLS[window].high
        units[:, window] = 2 * np.log(globals_[:, window] / low) / np.log(high / low) - 1
        actions[:, COEF_TERM_COUNT:] = units
        return actions


def _basis(groups: Array, dtype: np.dtype[Any]) -> Numbers:
    """What a group's controls are linear in, (n, N, 8)."""
    low, high = GROUP_BOUNDS[0][_BASIS_COLUMNS], GROUP_BOUNDS[1][_BASIS_COLUMNS]
    basis = np.ones((*groups.shape[:2], len(COEF_BASIS)), dtype)
    basis[..., 1:] = sanitise(groups[..., _BASIS_COLUMNS], (low, high)) * _BASIS_SCALE + _BASIS_SHIFT
    return basis


def _decode_globals(actions: Numbers, out: Array) -> None:
    """Affine but for the window, which is on a log scale."""
    out[:] = from_unit(actions, CONTROL_GLOBAL_BOUNDS)
    window = GLOBAL_CONTROLS[GlobalControl.WINDOW]
    exponent = (actions[:, GlobalControl.WINDOW] + 1) / 2
    out[:, GlobalControl.WINDOW] = window.low * (window.high / window.low) ** exponent
