"""`greedy`: a clairvoyant schedule that is feasible, because it is played on the ledger.

Every `hold` intervals it forks the episode, plays each candidate for that long in its own fork and the base policy
after it up to `depth` intervals, and takes the candidate that was charged least. The forks replay the workload, so
it sees the future; what it then does is a schedule that a luckier policy could have executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pikv_agents.rollout import Episode, Suite
from pikv_env.batch import TraceBatch
from pikv_runtime.block_rules import orders_of
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.controllers import make_policy
from pikv_runtime.objective import Score
from pikv_runtime.policy import Policy


@dataclass(frozen=True)
class Lookahead:
    """How far the schedule looks, in control intervals."""

    hold: int = 15
    """Intervals for which a choice stays."""
    depth: int = 60
    """Intervals over which choices are compared."""

    def __post_init__(self) -> None:
        if not 1 <= self.hold <= self.depth:
            raise ValueError(f"hold={self.hold}, depth={self.depth}: allowed 1 <= hold <= depth")


def greedy_score(suite: Suite, episode: Episode, candidates: Sequence[str], base: str, lookahead: Lookahead) -> Score:
    """Play the schedule on one episode.

    Args:
        suite: Workloads.
        episode: Workload and pressure.
        candidates: Specs of the policies to choose from, best guess first (it wins ties).
        base: What the forks play after a candidate's turn.
        lookahead: How often to choose, and how far to look.
    """
    policies = [make_policy(spec) for spec in dict.fromkeys([base, *candidates])]
    main = suite.batch(episode.family, episode.seed, 1)
    forks = suite.batch(episode.family, episode.seed, len(policies))
    main.reset_lane(0, workload=0, pressure=episode.pressure, lambdas=suite.lambdas)
    while not main.done[0]:
        state = main.get_state(0)
        for lane in range(len(policies)):
            forks.set_state(lane, state)
        spent = _roll(forks, policies, lookahead.hold)
        if not forks.done.all():
            spent += _roll(forks, [policies[0]] * len(policies), lookahead.depth - lookahead.hold)
        _roll(main, [policies[int(np.argmin(spent))]], lookahead.hold)
    main.close()
    forks.close()
    return main.score(0)


def _roll(batch: TraceBatch, policies: Sequence[Policy], intervals: int) -> np.ndarray:
    """Play policy i in lane i for so many intervals, or to the end; returns the charges (n,)."""
    told = [Telemetry(batch.groups[i], batch.globals[i]) for i in range(len(policies))]
    asked = [Control(batch.control_groups[i], batch.control_globals[i]) for i in range(len(policies))]
    spent = np.zeros(batch.num_envs)
    for i, policy in enumerate(policies):
        orders = orders_of(policy, batch.config.runtime.block_rule)
        if orders != batch.orders[i]:
            batch.set_orders(i, orders)  # a rule that takes over begins with what is cached
    for _ in range(intervals):
        if batch.done.all():
            break
        for policy, telemetry, control in zip(policies, told, asked, strict=True):
            policy.decide(telemetry, control)
        spent -= batch.step()
    return spent
