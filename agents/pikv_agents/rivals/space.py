"""The settings that searches choose from: a controller, its parameters, a ranker, as a point in the unit cube."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANKERS = ("lru", "lfu", "h2o", "streaming_llm")
"""Orders that know nothing of the future."""


@dataclass(frozen=True)
class Axis:
    """Range of a parameter."""

    low: float
    high: float
    log: bool = False

    def at(self, x: float) -> float:
        """The value at `x` in [0, 1], with three digits."""
        low, high = self.low, self.high
        value = low * (high / low) ** x if self.log else low + (high - low) * x
        return float(f"{value:.3g}")


CONTROLLERS: Mapping[str, Mapping[str, Axis]] = {
    "static": {
        "ratio": Axis(1.0, 4.0),
        "evict": Axis(0.0, 0.1),
        "fan_out": Axis(0.05, 1.0),
        "cached_share": Axis(0.0, 1.0),
        "cached_ratio": Axis(1.0, 4.0),
        "window": Axis(1.0, 8.0),
        "r_pressure": Axis(1.0, 4.0),
    },
    "load_proportional": {
        "fan_out": Axis(0.05, 1.0),
        "cached_share": Axis(0.0, 1.0),
        "r_pressure": Axis(1.0, 4.0),
        "busy_at": Axis(0.1, 1.0),
        "queued_at": Axis(0.3, 30.0, log=True),
    },
    "pressure_proportional": {
        "ratio": Axis(1.0, 4.0),
        "evict": Axis(0.0, 0.1),
        "start": Axis(0.0, 0.95),
        "queue_gain": Axis(0.0, 1.0),
    },
    "lazy": {"int8_at": Axis(0.3, 1.0), "int4_at": Axis(0.3, 1.0), "hysteresis": Axis(0.0, 0.4)},
}
"""Parameters by controller; parameters of one name share one axis of the cube."""
AXES = tuple(dict.fromkeys(name for parameters in CONTROLLERS.values() for name in parameters))
DIMENSIONS = 2 + len(AXES)
"""Controller, ranker, parameters."""

Point = NDArray[np.float64]


def centre() -> Point:
    """The middle of the cube, with the first controller: where searches start that need a place to start."""
    point = np.full(DIMENSIONS, 0.5)
    point[0] = 0.5 / len(CONTROLLERS)
    return point


def spec_of(point: Point) -> str:
    """The spec of a point (D,) in [0, 1]; D is `DIMENSIONS`. Axes that its controller lacks change nothing."""
    if point.shape != (DIMENSIONS,) or not np.all((point >= 0) & (point <= 1)):
        raise ValueError(f"point of shape {point.shape}: must be ({DIMENSIONS},), all of it in [0, 1]")
    controller = _one_of(tuple(CONTROLLERS), float(point[0]))
    place = dict(zip(AXES, point[2:].tolist(), strict=True))
    values = {name: axis.at(place[name]) for name, axis in CONTROLLERS[controller].items()}
    if controller == "lazy":
        values["int4_at"] = max(values["int4_at"], values["int8_at"])
    if controller == "static":  # a setting that may not demote says so
        values = {**{k: v for k, v in values.items() if k != "r_pressure"}, **_demotion(values["r_pressure"])}
    told = ",".join(f"{name}={_text(value)}" for name, value in values.items())
    return f"{controller}:{told}/{_one_of(RANKERS, float(point[1]))}"


def _demotion(r_pressure: float) -> dict[str, float | bool]:
    return {"demote": True, "r_pressure": r_pressure} if r_pressure > 1.05 else {}


def _one_of(names: tuple[str, ...], x: float) -> str:
    return names[min(int(x * len(names)), len(names) - 1)]


def _text(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
