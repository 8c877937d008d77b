"""The bracket on the timeline of a policy's own run: what the best decisions would have made of those admissions."""

from __future__ import annotations

from dataclasses import dataclass

from pikv_env.oracle.bracket import Bracket, Effort, bracket
from pikv_env.oracle.timeline import played_timeline
from pikv_env.pool import WorkloadPool
from pikv_runtime.objective import Score
from pikv_runtime.policy import Policy


@dataclass(frozen=True)
class Played:
    """One policy's run and the bracket around the least J on its timeline."""

    score: Score
    bracket: Bracket

    @property
    def above(self) -> float:
        """Share of the played J that lies above the lower bound: the most that better decisions could save."""
        return (self.score.J - self.bracket.lower) / self.score.J


def played_bracket(
    pool: WorkloadPool,
    workload: int,
    pressure: float,
    policy: Policy,
    lambdas: tuple[float, float],
    effort: Effort | None = None,
) -> Played:
    """Play `policy` on a pool's workload at `pressure` and bracket the optimum, admissions and clock being that run's.

    The bound says nothing about other timelines: a policy that admits otherwise may fall below it. The bracket charges
    every request the loss that it must expect, the score what the audited ones lost: with few audited requests the two
    differ by that sample's error.

    Raises:
        ValueError: the pool has a host tier.
    """
    timeline, score = played_timeline(pool, workload, pressure, policy, lambdas)
    return Played(score, bracket(pool, workload, pressure, lambdas, timeline=timeline, effort=effort))
