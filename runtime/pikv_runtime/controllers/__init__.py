"""Controllers: heuristics that say how much to keep, and the specs that name them.

To add one: a file with a frozen dataclass under `Controller` with a `write`, and a line in `CONTROLLERS`.
"""

from __future__ import annotations

import re

from pikv_runtime.contract import RATIO_MAX
from pikv_runtime.controllers.base import Controller
from pikv_runtime.controllers.capped_exact import CappedExact
from pikv_runtime.controllers.lazy import Lazy
from pikv_runtime.controllers.load_proportional import LoadProportional
from pikv_runtime.controllers.pressure_proportional import PressureProportional
from pikv_runtime.controllers.static import Static
from pikv_runtime.controllers.uniform_random import UniformRandom
from pikv_runtime.controllers.utility_greedy import UtilityGreedy
from pikv_runtime.parameters import parse_parameters
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
    "UtilityGreedy",
    "is_spec",
    "make_policy",
]

CONTROLLERS: Registry[type[Controller]] = Registry("controller")
for _controller in (CappedExact, Static, Lazy, PressureProportional, LoadProportional, UtilityGreedy, UniformRandom):
    CONTROLLERS.add(_controller.kind, _controller)

_RULE = re.compile(r"\+(?=[A-Za-z_])")  # not the one of 1e+5


def _split_rule(spec: str) -> tuple[str, str]:
    """A spec without its block rule, and the rule."""
    body, *rule = _RULE.split(spec.strip(), maxsplit=1)
    return body.strip(), rule[0].strip() if rule else ""


def _head(spec: str) -> str:
    return spec.partition("/")[0].partition(":")[0].strip()


def is_spec(text: str) -> bool:
    """Whether `text` starts with the name of a controller or ranker (and so is no path)."""
    body, _ = _split_rule(text)
    return _head(body) in CONTROLLERS or body in RANKERS


def make_policy(spec: str) -> Controller:
    """A heuristic from `controller[:key=value,...][/ranker][+block rule]`, or from a ranker's name (and block rule).

    A bare ranker lets pressure demote to the ladder's end in its order, and asks for nothing else. Where no block rule
    is named, the runtime's is in force.

    Raises:
        UnknownNameError: No such controller, ranker, block rule or parameter.
        ValueError: A parameter is ill-typed or out of range.
    """
    body, rule = _split_rule(spec)
    if body in RANKERS:
        return Static(ranker=body, block_rule=rule, demote=True, r_pressure=RATIO_MAX)
    call, _, ranker = body.partition("/")
    kind, _, params = call.partition(":")
    if kind not in CONTROLLERS:
        raise UnknownNameError("policy", kind, CONTROLLERS.names() + RANKERS.names())
    controller = CONTROLLERS[kind]
    values = parse_parameters(controller, kind, params, apart=("ranker", "block_rule"))
    return controller(**values, **({"ranker": ranker} if ranker else {}), block_rule=rule)
