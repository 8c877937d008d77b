"""Constraints: what an episode may lose or miss at most, as costs beside the reward.

A constrained decision process keeps costs apart from the reward and bounds their sum over an episode (Altman 1999).
Two can be set in `EnvConfig`, each as a floor:

    fidelity_floor    1 − F        at most  1 − fidelity_floor     lost fidelity, the objective's own measure
    slo               late share   at most  1 − slo                requests that miss an objective of their class

For each, an interval has what was *spent* of the budget (its sum over the episode is 1 − F, or the late share) and
the *cost*: what was spent beyond the budget. A cost sums to 0 over an episode iff its floor holds, so one limit, 0,
serves them all, and their sum.

A request is late as soon as nothing can mend it: it has waited longer than its TTFT objective, or decoded longer than
its TPOT objective allows for its whole output, or it was refused, or is unfinished when the episode ends. Telemetry
holds none of this: output lengths and audits stay unknown to policies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pikv_env.config import EnvConfig
from pikv_runtime.ledger import Ledger, Status, Tally

Floats = NDArray[np.float64]

CONSTRAINTS = ("fidelity", "slo")
"""Names, in the order of columns."""


class Constraints:
    """The budgets of a configuration, and how lanes spend them."""

    def __init__(self, config: EnvConfig) -> None:
        floors = (config.fidelity_floor, config.slo)
        self.limits = {name: 1.0 - floor for name, floor in zip(CONSTRAINTS, floors, strict=True) if floor is not None}
        """What may be spent in an episode, by the names of the constraints that are set."""
        self.columns = [CONSTRAINTS.index(name) for name in self.limits]
        self._budget = np.array([self.limits.get(name, np.inf) for name in CONSTRAINTS])
        # A floor takes the place of the loss term. The objectives of service bound how many are late and not how
        # late: without the latency term it would be free to starve as many as may be late.
        self.rewarded = np.array([1.0, 1.0, 0.0 if "fidelity" in self.limits else 1.0])
        """(3,) whether latency, memory and loss count in the reward."""

    def __bool__(self) -> bool:
        return bool(self.limits)

    def spent(self, s: Ledger, loss_scale: Floats, over: NDArray[np.bool_]) -> Floats:
        """What lanes have spent in the episode so far, (n, 2); columns of constraints that are not set stay 0.

        Args:
            s: the ledger.
            loss_scale: (n,) what LOSS is divided by.
            over: (n,) lanes whose episode is over (and closed): who is unfinished there is late.
        """
        spent = np.zeros((len(over), len(CONSTRAINTS)))
        if "fidelity" in self.limits:
            spent[:, 0] = s.tally[:, Tally.LOSS] / loss_scale
        if "slo" in self.limits:
            spent[:, 1] = late_requests(s, over) / np.maximum(1, s.num_requests)
        return spent

    def costs(self, before: Floats, after: Floats) -> Floats:
        """What was spent beyond the budgets between two moments, (..., 2)."""
        cost: Floats = np.maximum(0.0, after - self._budget) - np.maximum(0.0, before - self._budget)
        return cost


def late_requests(s: Ledger, over: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Requests of each lane that have missed, or can no longer meet, an objective of their class; (n,)."""
    classes, status = s.req_class, s.req_status
    now, arrival, first = s.clock_s[:, None], s.req_arrival_s, s.req_first_s
    to_first = np.where(first >= 0, first, np.maximum(now, arrival)) - arrival
    finish = np.where(status == Status.DONE, s.req_finish_s, now)
    per_token = np.where(first >= 0, finish - first, 0.0) / np.maximum(1, s.req_output - 1)
    lanes = np.arange(len(classes))[:, None]
    late = (to_first > s.class_ttft_s[lanes, classes]) | (per_token > s.class_tpot_s[lanes, classes])
    late |= (status == Status.REFUSED) | (over[:, None] & (status != Status.DONE))
    late &= np.arange(status.shape[1]) < s.num_requests[:, None]
    return np.count_nonzero(late, axis=1)
