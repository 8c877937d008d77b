"""Controllers: heuristics that say how much to keep, and the specs that name them.

To add one: a file with a frozen dataclass under `Controller` with a `write`, and a line in `CONTROLLERS`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pikv_runtime.contract import RATIO_MAX
from pikv_runtime.controllers.base import Controller
from pikv_runtime.controllers.capped_exact import CappedExact
from pikv_runtime.controllers.lazy import Lazy
from pikv_runtime.controllers.load_proportional import LoadProportional
from pikv_runtime.controllers.pressure_proportional import PressureProportional
from pikv_runtime.controllers.static import Static
from pikv_runtime.controllers.uniform_random import UniformRandom
from pikv_runtime.rankers import RANKERS
from pikv_runtime.registry import Registry, UnknownNameError

__all__ = [
    "CONTROLLERS",
    "CappedExact",
    "Controller",
    "Lazy",
    "LoadProportional",
    "PressureProportional",
    "Static",
    "UniformRandom",
    "is_spec",
    "make_policy",
]

CONTROLLERS: Registry[type[Controller]] = Registry("controller")
for _controller in (CappedExact, Static, Lazy, PressureProportional, LoadProportional, UniformRandom):
    CONTROLLERS.add(_controller.kind, _controller)

_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _head(spec: str) -> str:
    return spec.partition("/")[0].partition(":")[0].strip()


def is_spec(text: str) -> bool:
    """Whether `text` starts with the name of a controller or ranker (and so is no path)."""
    return _head(text) in CONTROLLERS or text in RANKERS


def make_policy(spec: str) -> Controller:
    """A heuristic from `controller[:key=value,...][/ranker]`, or from a ranker's name alone.

    A bare ranker lets pressure demote to the ladder's end in its order, and asks for nothing else.

    Raises:
        UnknownNameError: No such controller, ranker or parameter.
        ValueError: A parameter is ill-typed or out of range.
    """
    spec = spec.strip()
    if spec in RANKERS:
        return Static(ranker=spec, demote=True, r_pressure=RATIO_MAX)
    call, _, ranker = spec.partition("/")
    kind, _, params = call.partition(":")
    if kind not in CONTROLLERS:
        raise UnknownNameError("policy", kind, CONTROLLERS.names() + RANKERS.names())
    controller = CONTROLLERS[kind]
    values = _parse(controller, params)
    return controller(**values, **({"ranker": ranker} if ranker else {}))


def _parse(controller: type[Controller], params: str) -> dict[str, Any]:
    known = {f.name: f for f in fields(controller) if f.init and f.name != "ranker"}
    values: dict[str, Any] = {}
    for item in filter(None, params.split(",")):
        key, _, text = (part.strip() for part in item.partition("="))
        if key not in known:
            raise UnknownNameError(f"parameter of {controller.kind!r}", key, sorted(known))
        if key in values:
            raise ValueError(f"{controller.kind}: parameter {key!r} is given twice")
        values[key] = _value(f"{controller.kind}: {key}", text, type(known[key].default))
    return values


def _value(name: str, text: str, kind: type[Any]) -> Any:
    if kind is bool:
        if text.lower() not in _FLAGS:
            raise ValueError(f"{name}={text!r}: allowed {', '.join(_FLAGS)}")
        return _FLAGS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: must be a number ({kind.__name__})") from None
