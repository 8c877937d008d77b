"""CMA-ES (Hansen and Ostermeier, 2001; Optuna's sampler over the `cmaes` package) on the unit cube of settings."""

from __future__ import annotations

import math
import warnings

import numpy as np

from pikv_agents.rivals.space import SETTINGS
from pikv_agents.rivals.trials import Found, Trials

POPULATION = 4 + int(3 * math.log(SETTINGS.dimensions))
SIGMA = 0.3
"""First step size, in sides of the cube."""


def cma_es(trials: Trials, rng: np.random.Generator) -> Found:
    """Every generation is compared on one minibatch. The choices are coordinates, too."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # `x0` and `sigma0`: the way to say so in Optuna 4 and 5
        sampler = optuna.samplers.CmaEsSampler(
            x0=dict(zip(SETTINGS.names, SETTINGS.centre().tolist(), strict=True)),
            sigma0=SIGMA,
            n_startup_trials=1,
            popsize=POPULATION,
            seed=int(rng.integers(2**31)),
        )
    study = optuna.create_study(sampler=sampler)
    cube = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in SETTINGS.names}
    tried: list[tuple[float, str]] = []
    while not tried or trials.searching():
        asked = study.ask(cube)
        spec = SETTINGS.spec_of(np.array([asked.params[name] for name in SETTINGS.names]))
        score = trials.score(spec, trials.minibatch(len(tried) // POPULATION))
        study.tell(asked, score)
        tried.append((score, spec))
    spec, score = trials.best([one for _, one in sorted(tried)])
    return Found(spec, spec, trials.spent, len(tried), score)
