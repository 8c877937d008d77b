"""Sessions: arrivals that come in turns, with time to think or for a tool to run between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pikv_env.workloads.arrivals import ARRIVALS, ArrivalProcess, Poisson, Rng, Times, check_rate


class SessionArrivals(NamedTuple):
    """Times (R,), and of each arrival its session and its turn in that session (R,)."""

    times: Times
    session: NDArray[np.int64]
    turn: NDArray[np.int64]


@dataclass(frozen=True)
class Sessions:
    """Turns of sessions: sessions start by a process of their own, turns follow after lognormal think times.

    The process is open: a turn does not wait for the answer of the one before. Some sessions are under way at
    time 0 and some are cut at the horizon, so the rate is the same throughout.
    """

    min_turns: int = 2
    max_turns: int = 4
    think_median_s: float = 45.0
    """Median gap between two turns of a session, seconds."""
    think_sigma: float = 0.8
    """Standard deviation of the gap's logarithm."""
    starts: ArrivalProcess = field(default_factory=Poisson)
    """When sessions start: a day's swing or bursts of them move the load of their turns."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_turns <= self.max_turns:
            raise ValueError(f"min_turns={self.min_turns}, max_turns={self.max_turns}: allowed 1 <= min <= max")
        if not (self.think_median_s > 0 and self.think_sigma >= 0):
            raise ValueError(f"think_median_s={self.think_median_s} must be positive, think_sigma not negative")

    def __call__(self, rng: Rng, rate_per_s: float, horizon_s: float) -> Times:
        """Draw the times of one episode."""
        return self.draw(rng, rate_per_s, horizon_s).times

    def draw(self, rng: Rng, rate_per_s: float, horizon_s: float) -> SessionArrivals:
        """Draw times with their sessions and turns."""
        check_rate(rate_per_s, horizon_s)
        early = 4 * self.max_turns * self.think_median_s * np.exp(self.think_sigma**2 / 2)
        session_rate = rate_per_s * 2 / (self.min_turns + self.max_turns)
        starts = self.starts(rng, session_rate, horizon_s + early) - early
        count = rng.integers(self.min_turns, self.max_turns + 1, len(starts))
        gaps = self.think_median_s * rng.lognormal(0, self.think_sigma, (len(starts), self.max_turns))
        gaps[:, 0] = 0
        times = starts[:, None] + np.cumsum(gaps, axis=1)
        turn = np.arange(self.max_turns)
        keep = (turn < count[:, None]) & (times >= 0) & (times < horizon_s)
        session, turns = np.nonzero(keep)
        order = np.argsort(times[keep], kind="stable")
        return SessionArrivals(times[keep][order], session[order], turns[order])


ARRIVALS.add("sessions", Sessions)
