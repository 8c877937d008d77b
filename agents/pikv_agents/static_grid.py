"""The grid of static settings: what "best single setting" and "best setting in hindsight" are chosen from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pikv_agents.rollout import Episode, Suite
from pikv_runtime.contract import Control, GroupControl, Telemetry
from pikv_runtime.control_views import ControlView, make_view
from pikv_runtime.controllers import make_policy

_DEMOTE = "demote=true,r_pressure=2"
# Live pages: exact; demotion under pressure to int8, to int4; int8 asked always. Cached blocks: all of the cap down
# to almost nothing of it, exact or at int8. Reading: everything down to a tenth of the far pages.
QUICK_GRID = (
    "static:ratio=1.0/lru",
    f"static:{_DEMOTE}/h2o",
    f"static:{_DEMOTE},cached_share=0.5/h2o",
    f"static:{_DEMOTE},cached_share=0.2/h2o",
    f"static:{_DEMOTE},fan_out=0.7,cached_share=0.5/h2o",
    f"static:{_DEMOTE},fan_out=0.5,cached_share=0.5/h2o",
    f"static:{_DEMOTE},fan_out=0.5,cached_share=0.2/h2o",
    f"static:{_DEMOTE},fan_out=0.35,cached_share=0.2/h2o",
    "static:ratio=2,demote=true,r_pressure=4/h2o",
    f"static:{_DEMOTE},cached_ratio=2,cached_share=0.5/h2o",
)
STATIC_GRID = (
    *QUICK_GRID,
    "static:demote=true,r_pressure=4/h2o",
    "static:demote=true,r_pressure=4/streaming_llm",
    f"static:{_DEMOTE}/lru",
    f"static:{_DEMOTE},cached_share=0.1/h2o",
    f"static:{_DEMOTE},cached_share=0.02/h2o",
    f"static:{_DEMOTE},cached_ratio=4/h2o",
    f"static:{_DEMOTE},evict=0.02/h2o",
    f"static:{_DEMOTE},fan_out=0.85,cached_share=0.25/h2o",
    f"static:{_DEMOTE},fan_out=0.6,cached_share=0.35/h2o",
    f"static:{_DEMOTE},fan_out=0.35,cached_share=0.5/h2o",
    f"static:{_DEMOTE},fan_out=0.2,cached_share=0.5/h2o",
    f"static:{_DEMOTE},fan_out=0.1,cached_share=0.2/h2o",
    f"static:{_DEMOTE},fan_out=0.5,window=4,cached_share=0.5/h2o",
    "static:ratio=2,fan_out=0.5,cached_share=0.5,demote=true,r_pressure=4/h2o",
    "static:ratio=3.4,cached_share=0.25,demote=true,r_pressure=4/h2o",
    "static:demote=true,r_pressure=4,evict=0.1,fan_out=0.5,cached_share=0.25/h2o",
)

# Where a search for the best setting of one workload starts: one setting of each kind.
COARSE_GRID = (
    "static/lru",
    f"static:{_DEMOTE}/h2o",
    f"static:{_DEMOTE},cached_share=0.35/h2o",
    f"static:{_DEMOTE},cached_share=0.1/h2o",
    f"static:{_DEMOTE},fan_out=0.5,cached_share=0.2/h2o",
    "static:ratio=2,demote=true,r_pressure=4/h2o",
    "static:ratio=2,cached_share=0.2,demote=true,r_pressure=4/h2o",
    "static:ratio=2,cached_ratio=2,demote=true,r_pressure=4/h2o",
    "static:ratio=3.4,demote=true,r_pressure=4/h2o",
    "static:ratio=3.4,cached_ratio=3.4,demote=true,r_pressure=4/h2o",
    "static:ratio=3.4,fan_out=0.5,cached_share=0.2,demote=true,r_pressure=4/h2o",
    "static:ratio=2,cached_ratio=2,demote=true,r_pressure=4/h2o+arc",
)

LOAD_GRID = tuple(
    f"load_proportional:fan_out={fan_out},cached_share={share}/h2o"
    for fan_out in (0.2, 0.35, 0.5)
    for share in (0.2, 0.5)
)
"""Heuristics that depend on the load; learning may start from them, too."""

EVICT_MARGIN = -0.2

Table = dict[str, list[float]]


def grid_scores(suite: Suite, grid: Sequence[str], episodes: Sequence[Episode]) -> Table:
    """J of every setting on every episode."""
    outcomes = suite.run_all({spec: spec for spec in grid}, episodes)
    return {spec: [o.score.J for o in rows] for spec, rows in outcomes.items()}


def best_single(scores: Table) -> str:
    """The setting of least geometric-mean J: a family that is overloaded whatever one does must not decide."""
    return min(scores, key=lambda spec: float(np.mean(np.log(scores[spec]))))


def best_static(suite: Suite, grid: Sequence[str], episodes: Sequence[Episode]) -> str:
    """Static-global: the best single setting over `episodes` of the training families."""
    return best_single(grid_scores(suite, grid, episodes))


def encode_static(spec: str, view: str, num_groups: int) -> np.ndarray:
    """The action (A,) of control view `view` that comes nearest to a static setting."""
    return encode_control(make_policy(spec).decide(Telemetry.zeros(num_groups)), make_view(view, num_groups))


def encode_control(control: Control, view: ControlView) -> np.ndarray:
    """The action (A,) of `view` that comes nearest to a control.

    Where nothing is evicted, `coef` could say so with any bias from -1 to 0: a little below 0 is taken, so that
    exploration around it does not evict at once.
    """
    action = view.encode(control.groups[None], control.globals[None])[0]
    if view.name == "discrete":
        return action
    if view.name == "coef" and not control.groups[:, GroupControl.EVICT_FRACTION].any():
        action[view.action_names().index("evict_fraction.bias")] = EVICT_MARGIN
    return np.clip(action, -1, 1)
