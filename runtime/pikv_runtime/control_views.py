"""How a policy sees telemetry, and how its numbers become a `Control`: observations and control views.

Batched: arrays lead with an axis n; a single decision is a batch of one. Policies observe the globals, then
the mean and the maximum over groups of every group feature, so that `coef` and `discrete` serve any number of
groups.
"""

from __future__ import annotations

import numpy as np

from pikv_runtime.contract import GLOBAL_FEATURES, GROUP_FEATURES, Array
from pikv_runtime.registry import Registry
from pikv_runtime.views.base import GLOBAL_BOUNDS, GROUP_BOUNDS, ControlView, Numbers, sanitise
from pikv_runtime.views.box import BoxView
from pikv_runtime.views.coef import CoefView
from pikv_runtime.views.discrete import DISCRETE_GRID, DiscreteView

__all__ = [
    "DISCRETE_GRID",
    "VIEWS",
    "BoxView",
    "CoefView",
    "ControlView",
    "DiscreteView",
    "Numbers",
    "make_view",
    "observation_names",
    "observe",
    "sanitise",
]

_GLOBALS, _FEATURES = len(GLOBAL_FEATURES), len(GROUP_FEATURES)

VIEWS: Registry[type[ControlView]] = Registry("control view")
VIEWS.add("coef", CoefView)
VIEWS.add("box", BoxView)
VIEWS.add("discrete", DiscreteView)


def make_view(name: str, num_groups: int | None = None) -> ControlView:
    """A view by name; raises UnknownNameError, or ValueError where it needs `num_groups`."""
    return VIEWS[name](num_groups)


def observation_names(num_groups: int, view: str = "coef") -> list[str]:
    """Names of the observation's entries, in order."""
    features = [c.name for c in GROUP_FEATURES]
    names = [c.name for c in GLOBAL_FEATURES]
    names += [f"mean_{f}" for f in features] + [f"max_{f}" for f in features]
    if VIEWS[view].observes_groups:
        names += [f"group{g}_{f}" for g in range(num_groups) for f in features]
    return names


def observe(groups: Array, globals_: Array, out: Array | None = None, view: str = "coef") -> Array:
    """Telemetry `groups` (n, N, F) and `globals_` (n, G) as observations (n, D): always finite, float32."""
    n, num_groups = groups.shape[:2]
    every_group = VIEWS[view].observes_groups
    pooled = _GLOBALS + 2 * _FEATURES
    if out is None:
        out = np.empty((n, pooled + every_group * num_groups * _FEATURES), np.float32)
    clean = sanitise(groups, GROUP_BOUNDS)
    sanitise(globals_, GLOBAL_BOUNDS, out[:, :_GLOBALS])
    # Groups first: pooling over the leading axis is several times faster than over an inner one.
    by_group = np.ascontiguousarray(clean.transpose(1, 0, 2))
    out[:, _GLOBALS : _GLOBALS + _FEATURES] = np.add.reduce(by_group, axis=0, dtype=np.float64) / num_groups
    np.maximum.reduce(by_group, axis=0, out=out[:, _GLOBALS + _FEATURES : pooled])
    if every_group:
        out[:, pooled:] = clean.reshape(n, -1)
    return out
