"""A network as C source: constants of the contract and the weights, before the common part in `decide.c`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources

import numpy as np

from pikv_runtime.contract import (
    EVICT_MAX,
    GLOBAL_CONTROLS,
    GLOBAL_FEATURES,
    GROUP_CONTROLS,
    GROUP_FEATURES,
    RATIO_MAX,
    Array,
    GlobalControl,
    GroupControl,
)
from pikv_runtime.policy.network import OBSERVATION_CLIP, PolicyNetwork
from pikv_runtime.views.base import CONTROL_GLOBAL_BOUNDS, GLOBAL_BOUNDS, GROUP_BOUNDS
from pikv_runtime.views.coef import (
    COEF_BASIS,
    COEF_GAIN,
    COEF_SATURATION,
    COEF_TERM_COUNT,
    TERM_COLUMNS,
    TERM_ROWS,
)

BLOCK = 32  # outputs summed at a time: they fill the vector registers
CHUNK = 64  # groups whose controls are computed at a time


def source(network: PolicyNetwork) -> str:
    """The whole C source of `network`; equal networks give equal text."""
    common = resources.files(__package__).joinpath("decide.c").read_text(encoding="utf-8")
    parts = [
        "#include <math.h>",
        "#include <stdint.h>",
        *_macros(network),
        *_ranges(),
        *_coef(),
        *_weights(network),
    ]
    return "\n".join(parts) + "\n\n" + common


def _macros(network: PolicyNetwork) -> list[str]:
    outputs = len(network.layers[-1][1])
    window = GLOBAL_CONTROLS[GlobalControl.WINDOW]
    values: dict[str, float] = {
        "GROUP_FEATURES": len(GROUP_FEATURES),
        "GLOBAL_FEATURES": len(GLOBAL_FEATURES),
        "LANES": len(GROUP_FEATURES) + 1,
        "CONTROLS": len(GROUP_CONTROLS),
        "GLOBAL_CONTROLS": len(GLOBAL_CONTROLS),
        "OBSERVATION": len(network.mean),
        "OBSERVATION_CLIP": OBSERVATION_CLIP,
        "EVERY_GROUP": int(network.control_view.observes_groups),
        "COEF": int(network.view == "coef"),
        "RELU": int(network.activation == "relu"),
        "OUTPUTS": outputs,
        "PADDED_OUTPUTS": _padded(outputs),
        "BLOCK": BLOCK,
        "CHUNK": CHUNK,
        "BASIS": len(COEF_BASIS),
        "TERMS": COEF_TERM_COUNT,
        "GAIN": COEF_GAIN,
        "SATURATION": COEF_SATURATION,
        "RATIO_MAX": RATIO_MAX,
        "EVICT_MAX": EVICT_MAX,
        "WINDOW_LOW": float(window.low),
        "WINDOW_HIGH": float(window.high),
        "WINDOW": int(GlobalControl.WINDOW),
        **{control.name: int(control) for control in GroupControl},
    }
    return [f"#define {name} {value!r}" for name, value in values.items()]


def _ranges() -> list[str]:
    lines = []
    for i, end in enumerate(("low", "high")):
        lines.append(_array("float", f"group_{end}", _widened(end, GROUP_BOUNDS[i])))
        lines.append(_array("float", f"global_{end}", GLOBAL_BOUNDS[i]))
        lines.append(_array("float", f"control_{end}", CONTROL_GLOBAL_BOUNDS[i]))
    return lines


def _widened(low_or_high: str, values: Array) -> Array:
    """One lane more than there are group features, whose range is wide open."""
    limit = np.finfo(np.float32)
    return np.append(values, limit.min if low_or_high == "low" else limit.max).astype(np.float32)


def _coef() -> list[str]:
    columns = [0 if column is None else int(column) for _, column, _, _ in COEF_BASIS]
    return [
        f"static const int basis_column[] = {{{', '.join(map(str, columns))}}};",
        f"static const int term_row[] = {{{', '.join(map(str, TERM_ROWS))}}};",
        f"static const int term_column[] = {{{', '.join(map(str, TERM_COLUMNS))}}};",
        _array("double", "basis_scale", [scale for _, _, scale, _ in COEF_BASIS]),
        _array("double", "basis_shift", [shift for _, _, _, shift in COEF_BASIS]),
    ]


def _weights(network: PolicyNetwork) -> list[str]:
    lines = [
        _array("double", "mean", network.mean),
        _array("double", "inverse_std", 1.0 / network.std.astype(np.float64)),
    ]
    for i, (weight, bias) in enumerate(network.layers):
        padding = _padded(len(bias)) - len(bias)
        lines.append(_array("float", f"w{i}", np.pad(weight.T, ((0, 0), (0, padding))).ravel()))
        lines.append(_array("float", f"b{i}", np.pad(bias, (0, padding))))
    return lines + _forward(network)


def _forward(network: PolicyNetwork) -> list[str]:
    """`forward(x, outputs)`: the layers, one after the other."""
    lines = [
        "static inline void dense(const double *, const float *, const float *, double *, int, int);",
        "static inline void activate(double *, int);",
        "static inline void forward(const double *x0, double *outputs) {",
    ]
    last = len(network.layers) - 1
    for i, (weight, bias) in enumerate(network.layers):
        target, width = "outputs" if i == last else f"x{i + 1}", _padded(len(bias))
        if i < last:
            lines.append(f"    _Alignas(64) double {target}[{width}];")
        lines.append(f"    dense(x{i}, w{i}, b{i}, {target}, {weight.shape[1]}, {width});")
        if i < last:
            lines.append(f"    activate({target}, {width});")
    return [*lines, "}"]


def _padded(width: int) -> int:
    return -(-width // BLOCK) * BLOCK


def _array(kind: str, name: str, values: Array | Iterable[float]) -> str:
    """An array of hexadecimal literals: exact, whatever the compiler."""
    suffix = "f" if kind == "float" else ""
    # No bundle holds NaN, but were there one, C must show it.
    numbers = ",".join("NAN" if v != v else float(v).hex() + suffix for v in values)
    return f"_Alignas(64) static const {kind} {name}[] = {{{numbers}}};"
