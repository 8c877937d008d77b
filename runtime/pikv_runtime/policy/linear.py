"""A heuristic as a network: controls that are weighted sums of named observations, and so fit into a bundle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pikv_runtime.contract import GLOBAL_CONTROLS, GLOBAL_FEATURES, GROUP_FEATURES, Control, GlobalControl
from pikv_runtime.control_views import make_view, observation_names
from pikv_runtime.policy.network import OBSERVATION_CLIP, PolicyNetwork
from pikv_runtime.registry import UnknownNameError

CONSTANT = "1"
"""Name of the observation that is always one."""


def linear_network(rules: Mapping[str, Mapping[str, float]]) -> PolicyNetwork:
    """A network of the `coef` view without hidden layers.

    Args:
        rules: Control to {observation: weight}. A global control is in its own unit and is clipped to its range;
            `window` takes a constant only, as its scale is logarithmic. A group control's coefficient, such as
            `compression_ratio.mass_density`, is in [-1, 1]. The observation `1` is the constant. Whatever no rule
            names is as in `Control.neutral`.

    Raises:
        UnknownNameError: No such control or observation.
        ValueError: `window` depends on something.
    """
    view = make_view("coef")
    outputs, inputs = view.action_names(), observation_names(0, "coef")
    neutral = Control.neutral(1)
    bias = view.encode(neutral.groups[None], neutral.globals[None])[0].astype(np.float64)
    weight = np.zeros((len(outputs), len(inputs)))
    for control, rule in rules.items():
        if control not in outputs:
            raise UnknownNameError("control", control, outputs)
        row = outputs.index(control)
        scale, shift = _to_action(control, rule)
        bias[row] = shift + scale * rule.get(CONSTANT, 0.0)
        for name, value in rule.items():
            if name == CONSTANT:
                continue
            if name not in inputs:
                raise UnknownNameError("observation", name, [CONSTANT, *inputs])
            weight[row, inputs.index(name)] = scale * value
    # Normalised observations are clipped: where a range is wider, std makes it fit.
    columns = GLOBAL_FEATURES + 2 * GROUP_FEATURES
    std = np.array([max(1.0, abs(c.low) / OBSERVATION_CLIP, abs(c.high) / OBSERVATION_CLIP) for c in columns])
    layer = ((weight * std).astype(np.float32), bias.astype(np.float32))
    return PolicyNetwork("coef", "tanh", np.zeros(len(inputs), np.float32), std.astype(np.float32), (layer,))


def _to_action(control: str, rule: Mapping[str, float]) -> tuple[float, float]:
    """Scale and shift from a control's own unit to the action's [-1, 1]."""
    column = next((c for c in GLOBAL_CONTROLS if c.name == control), None)
    if column is None:
        return 1.0, 0.0
    if control == GLOBAL_CONTROLS[GlobalControl.WINDOW].name:
        if rule.keys() - {CONSTANT}:
            raise ValueError(
                f"control {control!r} depends on {sorted(rule.keys() - {CONSTANT})}: a constant is allowed"
            )
        pages = rule.get(CONSTANT, column.low)
        return 0.0, float(2 * np.log(pages / column.low) / np.log(column.high / column.low) - 1)
    span = column.high - column.low
    return 2 / span, -2 * column.low / span - 1
