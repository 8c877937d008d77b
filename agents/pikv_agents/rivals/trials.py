"""The budget of a search: every control interval that it asks for is counted, and none is played beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pikv_agents.rollout import Episode, Outcome, Suite
from pikv_runtime.policy import Policy

NEUTRAL = "static/lru"
"""What every episode's J is compared with: nothing asked, nothing allowed."""
RESERVE = 0.4
"""Share of the budget that is kept for playing the best candidates on all episodes."""
MINIBATCH = 4
"""Episodes of a trial."""


Candidate = str | Callable[[], Policy]
"""Spec of a heuristic, or a maker of fresh policies."""


class BudgetError(ValueError):
    """A budget in which not even one trial can be played."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    policy: Candidate
    """Spec, or maker of fresh policies: what `Suite.run_all` plays."""
    setting: str
    """In words: the spec, or what was learned."""
    intervals: int
    """Control intervals that were played."""
    trials: int
    score: float
    """Mean log ratio of J to the neutral setting's, over the episodes that decided: below 0 is better."""

    def to_dict(self, budget_intervals: int) -> dict[str, Any]:
        """JSON values."""
        return {
            "setting": self.setting,
            "intervals": self.intervals,
            "budget_intervals": budget_intervals,
            "trials": self.trials,
            "score": self.score,
        }


@dataclass
class Trials:
    """Plays candidates on training episodes within a budget.

    An episode is paid for by the control intervals that it took. What this search has played it need not play again;
    what others have played before it is paid for all the same.
    Candidates are compared by the mean over episodes of log(J / J of the neutral setting): overload must not decide.

    Args:
        suite: Workloads; keeps what it has played.
        episodes: Training episodes; their order is the order of play, so shuffle them if it means something.
        budget_intervals: Most control intervals that may be played.

    Raises:
        BudgetError: The budget does not hold one minibatch and its neutral run.
    """

    suite: Suite
    episodes: Sequence[Episode]
    budget_intervals: int
    spent: int = field(default=0, init=False)
    played: dict[tuple[str, Episode], Outcome] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.size = min(MINIBATCH, len(self.episodes))
        if not self.episodes or self.budget_intervals < 2 * self.size * self.worst:
            least = 2 * max(1, self.size) * self.worst
            raise BudgetError(
                f"budget_intervals={self.budget_intervals}: at least {least} are needed for one trial of {self.size} "
                f"episodes of up to {self.worst} intervals, and the neutral setting beside it"
            )

    @property
    def worst(self) -> int:
        """Most control intervals that an episode can take."""
        config = self.suite.config
        return math.ceil(config.horizon_s * (1 + config.drain) / config.runtime.interval_s) + 1

    @property
    def left(self) -> int:
        """Control intervals left."""
        return self.budget_intervals - self.spent

    def minibatch(self, number: int) -> list[Episode]:
        """The episodes of trial or round `number`: all take their turn."""
        return [self.episodes[(number * self.size + k) % len(self.episodes)] for k in range(self.size)]

    def searching(self, trials: int = 1) -> bool:
        """Whether so many more trials are sure to leave the reserve for the last comparison."""
        reserve = min(RESERVE * self.budget_intervals, 4.0 * len(self.episodes) * self.worst)
        return self.left - 2 * trials * self.size * self.worst >= reserve

    def affords(self, names: Iterable[str], episodes: Iterable[Episode]) -> bool:
        """Whether what has not been played of them is sure to lie within the budget, the neutral setting included."""
        new = {(name, e) for name in (NEUTRAL, *names) for e in episodes} - set(self.played)
        return len(new) * self.worst <= self.left

    def score(self, name: str, episodes: Sequence[Episode], policy: Candidate | None = None) -> float:
        """Mean log ratio of J of a candidate to the neutral setting's.

        Args:
            name: Spec, or what `policy` is called.
            episodes: Where.
            policy: Maker of fresh policies; None: the spec.

        Raises:
            BudgetError: The budget might not hold it.
        """
        if not self.affords((name,), episodes):
            raise BudgetError(f"{len(episodes)} episodes of up to {self.worst} intervals, {self.left} are left")
        self._play(NEUTRAL, episodes, NEUTRAL)
        self._play(name, episodes, policy or name)
        return float(np.mean([math.log(self._J(name, e) / self._J(NEUTRAL, e)) for e in episodes]))

    def best(self, ranked: Sequence[str], policies: Mapping[str, Candidate] | None = None) -> tuple[str, float]:
        """Play the first of `ranked`, and the neutral setting, on all episodes that the budget allows.

        Args:
            ranked: Specs or names, the most promising first.
            policies: Makers of those that are no specs.

        Returns:
            The name of least score (the neutral setting, if nothing is better) and that score. All finalists are
            compared on the same episodes.

        Raises:
            BudgetError: Nothing is left for a comparison.
        """
        names = list(dict.fromkeys(ranked))
        finalists = names[: max(1, self.left // (len(self.episodes) * self.worst) - 1)]
        common: list[Episode] = []
        for episode in self.episodes:
            if not self.affords(finalists, [episode]):
                break
            common.append(episode)
            for name in finalists:
                self.score(name, [episode], (policies or {}).get(name))
        if not common:
            raise BudgetError(f"nothing is left to compare {finalists} with: {self.left} intervals")
        scores = {name: self.score(name, common) for name in (*finalists, NEUTRAL)}
        name = min(scores, key=lambda one: scores[one])
        return name, scores[name]

    def pay(self, outcome: Outcome) -> None:
        """Count an episode that was played beside `score`."""
        self.spent += int(outcome.counters["decisions"])

    def _play(self, name: str, episodes: Sequence[Episode], policy: Candidate) -> None:
        """Play what is missing, side by side."""
        new = [e for e in dict.fromkeys(episodes) if (name, e) not in self.played]
        for episode, outcome in zip(new, self.suite.run(policy, new) if new else [], strict=True):
            self.played[name, episode] = outcome
            self.pay(outcome)

    def _J(self, name: str, episode: Episode) -> float:
        return self.played[name, episode].score.J
