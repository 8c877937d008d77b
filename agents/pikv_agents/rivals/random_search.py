"""Random search: settings drawn evenly, the best of them compared on all episodes."""

from __future__ import annotations

import numpy as np

from pikv_agents.rivals.space import SETTINGS
from pikv_agents.rivals.trials import Found, Trials


def random_search(trials: Trials, rng: np.random.Generator) -> Found:
    """Draw until the reserve is reached; every trial plays the next minibatch."""
    tried: list[tuple[float, str]] = []
    while not tried or trials.searching():
        spec = SETTINGS.spec_of(rng.random(SETTINGS.dimensions))
        tried.append((trials.score(spec, trials.minibatch(len(tried))), spec))
    spec, score = trials.best([one for _, one in sorted(tried)])
    return Found(spec, spec, trials.spent, len(tried), score)
