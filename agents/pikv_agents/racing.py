"""J of settings that may still win: who has been charged more than a limit is stopped.

Charges are never negative and sum to J, so whoever is stopped would have ended above the limit: nothing that lies below
is lost, and overloaded runs, the dearest to play, end early.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pikv_agents.rollout import MOST_LANES, Episode, Job, Outcome, Suite, run_jobs
from pikv_runtime.controllers import make_policy


def race(suite: Suite, specs: Sequence[str], episodes: Sequence[Episode], limits: Sequence[float]) -> list[list[float]]:
    """J by spec and episode, (specs, episodes); infinite where it lies above the episode's limit and was not known.

    Args:
        suite: Workloads; what was played to the end is kept there.
        specs: Heuristics.
        episodes: Where.
        limits: For each episode the J from which a setting is of no interest.
    """
    for episode, limit in zip(episodes, limits, strict=True):
        todo = [spec for spec in dict.fromkeys(specs) if suite.known(spec, episode) is None]
        for start in range(0, len(todo), MOST_LANES):
            part = todo[start : start + MOST_LANES]
            for spec, outcome in zip(part, _play(suite, part, episode, limit), strict=True):
                if outcome is not None:
                    suite.remember(spec, episode, outcome)
    known = [[suite.known(spec, episode) for episode in episodes] for spec in specs]
    return [[math.inf if outcome is None else outcome.score.J for outcome in row] for row in known]


def _play(suite: Suite, specs: Sequence[str], episode: Episode, limit: float) -> list[Outcome | None]:
    """Outcomes side by side; None for those that were stopped."""
    batch = suite.batch(episode.family, episode.seed, len(specs))
    spent = np.zeros(len(specs))

    def stop(first: int, lanes: list[int], rewards: NDArray[np.float64]) -> None:
        spent[lanes] -= rewards[lanes]
        batch.done |= spent > limit

    jobs = [Job(make_policy(spec), 0, episode.pressure) for spec in specs]
    outcomes = run_jobs(batch, jobs, suite.lambdas, watch=stop)
    batch.close()
    if suite.progress:
        suite.progress(len(specs))
    return [outcome if charged <= limit else None for outcome, charged in zip(outcomes, spent.tolist(), strict=True)]
