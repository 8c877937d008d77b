"""The settings that searches choose from: controller, parameters, ranker, block rule, as a point in the unit cube."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Point = NDArray[np.float64]

CHOICES = ("controller", "ranker", "block_rule")
"""What a point chooses by name; its first coordinates."""


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


Parameters = Mapping[str, Mapping[str, Axis]]
"""Ranges of parameters, by what has them."""


@dataclass(frozen=True)
class Space:
    """Choices and ranges. Parameters of one name share one axis of the cube."""

    controllers: Parameters
    rankers: tuple[str, ...]
    rules: Parameters
    """Block rules; "" is the runtime's own."""

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The parameters that have a coordinate, in its order."""
        owners = (*self.controllers.values(), *self.rules.values())
        return tuple(dict.fromkeys(name for parameters in owners for name in parameters))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all coordinates: choices, then parameters."""
        return (*CHOICES, *self.axes)

    @property
    def dimensions(self) -> int:
        """Coordinates of a point, D."""
        return len(self.names)

    def centre(self) -> Point:
        """The middle of the cube, with the first controller and block rule: where a search may start."""
        point = np.full(self.dimensions, 0.5)
        point[0], point[2] = 0.5 / len(self.controllers), 0.5 / len(self.rules)
        return point

    def spec_of(self, point: Point) -> str:
        """The spec of a point (D,) in [0, 1]. Axes that its choices lack change nothing."""
        if point.shape != (self.dimensions,) or not np.all((point >= 0) & (point <= 1)):
            raise ValueError(f"point of shape {point.shape}: must be ({self.dimensions},), all of it in [0, 1]")
        place = dict(zip(self.names, point.tolist(), strict=True))
        controller = _one_of(tuple(self.controllers), place["controller"])
        values = {name: axis.at(place[name]) for name, axis in self.controllers[controller].items()}
        rule = _one_of(tuple(self.rules), place["block_rule"])
        told = {name: axis.at(place[name]) for name, axis in self.rules[rule].items()}
        head = _call(controller, _legal(controller, values))
        return f"{head}/{_one_of(self.rankers, place['ranker'])}" + (f"+{_call(rule, told)}" if rule else "")


SETTINGS = Space(
    controllers={
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
    },
    rankers=("lru", "lfu", "h2o", "streaming_llm"),
    rules={"": {}, "two_queue": {}, "s3fifo": {}, "sieve": {}, "arc": {}, "tlru": {}, "lrb": {}},
)
"""Everything that knows nothing of the future."""


def _legal(controller: str, values: dict[str, float]) -> dict[str, float | bool]:
    """Parameters that agree with one another."""
    if controller in ("lazy", "utility_greedy"):
        low, high = ("int8_at", "int4_at") if controller == "lazy" else ("int8_error", "int4_error")
        return {**values, high: max(values[high], values[low])}
    if controller == "static":  # a setting that may not demote says so
        rest: dict[str, float | bool] = {k: v for k, v in values.items() if k != "r_pressure"}
        demotes = values["r_pressure"] > 1.05
        return {**rest, "demote": True, "r_pressure": values["r_pressure"]} if demotes else rest
    return dict(values)


def _one_of(names: tuple[str, ...], x: float) -> str:
    return names[min(int(x * len(names)), len(names) - 1)]


def _call(name: str, values: Mapping[str, float | bool]) -> str:
    told = ",".join(f"{key}={_text(value)}" for key, value in values.items())
    return f"{name}:{told}" if told else name


def _text(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
