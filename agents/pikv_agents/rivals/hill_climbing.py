"""Hill climbing: a step from the best place so far, kept if it is better on the same episodes."""

from __future__ import annotations

import numpy as np

from pikv_agents.rivals.space import SETTINGS, Point, Space
from pikv_agents.rivals.trials import Found, Trials

STEP = 0.3
"""First standard deviation of a step, in sides of the cube."""
SHRINK, GROW = 0.9, 1.3
"""Factors on the step after a miss and after a hit."""
COORDINATES = 3
"""Coordinates that a step changes on average, in a cube that has more."""


def hill_climbing(trials: Trials, rng: np.random.Generator, space: Space = SETTINGS) -> Found:
    """Both places play the minibatch of the step, so that easy episodes flatter neither."""
    here, step = space.centre(), STEP
    tried: list[tuple[float, str]] = []
    number = 0
    while not tried or trials.searching(2):
        episodes = trials.minibatch(number)
        now = trials.score(space.spec_of(here), episodes)
        there = neighbour(here, step, rng)
        then = trials.score(space.spec_of(there), episodes)
        tried += [(now, space.spec_of(here)), (then, space.spec_of(there))]
        here, step = (there, min(step * GROW, 0.5)) if then < now else (here, max(step * SHRINK, 0.05))
        number += 1
    spec, score = trials.best([space.spec_of(here), *(one for _, one in sorted(tried))])
    return Found(spec, spec, trials.spent, 2 * number, score)


def neighbour(point: Point, step: float, rng: np.random.Generator) -> Point:
    """A place nearby: some coordinates moved, reflected at the walls; at least one."""
    chosen = rng.random(len(point)) < COORDINATES / len(point)
    chosen[rng.integers(len(point))] = True
    moved = np.abs(np.where(chosen, point + rng.normal(0.0, step, len(point)), point))
    return np.clip(np.where(moved > 1, 2 - moved, moved), 0.0, 1.0)
