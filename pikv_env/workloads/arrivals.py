"""Arrival processes: when requests come. Each is a frozen dataclass called as `(rng, rate_per_s, horizon_s)`.

`rate_per_s` is the mean rate over the horizon. Processes whose rate moves are normalised by the movement that
was drawn, so that an episode offers the load that was asked for and only its shape is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pikv_env.workloads.mooncake import read_mooncake
from pikv_runtime.registry import Registry

Rng = np.random.Generator
Times = NDArray[np.float64]


class ArrivalProcess(Protocol):
    """Draws arrival times in seconds, sorted, all in [0, horizon_s)."""

    def __call__(self, rng: Rng, rate_per_s: float, horizon_s: float) -> Times:
        """Draw the times of one episode."""
        ...


ARRIVALS: Registry[type] = Registry("arrival process")


def check_rate(rate_per_s: float, horizon_s: float) -> None:
    """Raise ValueError unless both are positive and finite."""
    if not (0 < rate_per_s < np.inf and 0 < horizon_s < np.inf):
        raise ValueError(f"rate_per_s={rate_per_s} and horizon_s={horizon_s} must be positive and finite")


@dataclass(frozen=True)
class Poisson:
    """Independent arrivals at a constant rate."""

    def __call__(self, rng: Rng, rate_per_s: float, horizon_s: float) -> Times:
        """Draw the times of one episode."""
        check_rate(rate_per_s, horizon_s)
        return np.sort(rng.uniform(0, horizon_s, rng.poisson(rate_per_s * horizon_s)))


@dataclass(frozen=True)
class Gamma:
    """Renewal process with gamma gaps: bursty where `cv` is above 1."""

    cv: float = 3.0
    """Coefficient of variation of the gaps."""

    def __post_init__(self) -> None:
        if not self.cv > 0:
            raise ValueError(f"cv={self.cv}: must be positive")

    def __call__(self, rng: Rng, rate_per_s: float, horizon_s: float) -> Times:
        """Draw the times of one episode."""
        check_rate(rate_per_s, horizon_s)
        shape = 1 / self.cv**2
        chunk = max(16, int(2 * rate_per_s * horizon_s))
        # The episode is cut out of a longer draw, so that the process is under way at time 0.
        times = np.cumsum(rng.gamma(shape, 1 / (rate_per_s * shape), chunk))
        while times[-1] < 2 * horizon_s:
            times = np.append(times, times[-1] + np.cumsum(rng.gamma(shape, 1 / (rate_per_s * shape), chunk)))
        times = times - rng.uniform(0, horizon_s)
        return times[(times >= 0) & (times < horizon_s)]


@dataclass(frozen=True)
class Diurnal:
    """A rate that swings like a day, drawn by thinning."""

    period_s: float = 900.0
    """Length of a day, seconds."""
    amplitude: float = 0.8
    """Swing around the mean rate, 0..1."""

    def __post_init__(self) -> None:
        if not self.period_s > 0 or not 0 <= self.amplitude <= 1:
            raise ValueError(f"period_s={self.period_s} must be positive, amplitude={self.amplitude} in 0..1")

    def __call__(self, rng: Rng, rate_per_s: float, horizon_s: float) -> Times:
        """Draw the times of one episode; the hour at time 0 is random."""
        check_rate(rate_per_s, horizon_s)
        start = rng.uniform(0, 2 * np.pi)
        turns = 2 * np.pi * horizon_s / self.period_s
        mean = 1 + self.amplitude * (np.cos(start) - np.cos(start + turns)) / turns
        peak = rate_per_s * (1 + self.amplitude) / mean
        times = Poisson()(rng, peak, horizon_s)
        wave = 1 + self.amplitude * np.sin(start + 2 * np.pi * times / self.period_s)
        return times[rng.random(len(times)) * (1 + self.amplitude) < wave]


@dataclass(frozen=True)
class OnOff:
    """Bursts: a two-state Markov chain modulates a Poisson process."""

    on_s: float = 40.0
    """Mean length of a burst, seconds."""
    off_s: float = 80.0
    """Mean length of a lull, seconds."""
    lull: float = 0.15
    """Rate in a lull over the rate in a burst."""

    def __post_init__(self) -> None:
        if not (self.on_s > 0 and self.off_s > 0 and 0 <= self.lull <= 1):
            raise ValueError(f"on_s={self.on_s}, off_s={self.off_s} must be positive, lull={self.lull} in 0..1")

    def __call__(self, rng: Rng, rate_per_s: float, horizon_s: float) -> Times:
        """Draw the times of one episode."""
        check_rate(rate_per_s, horizon_s)
        pairs = 8 + int(4 * horizon_s / (self.on_s + self.off_s))
        spans = rng.exponential(1.0, (pairs, 2)) * (self.on_s, self.off_s)
        rates = np.tile([1.0, max(self.lull, 1e-9)], pairs)
        if rng.random() < self.off_s / (self.on_s + self.off_s):
            spans, rates = spans[:, ::-1], rates[::-1]
        edges = np.concatenate([[0.0], np.cumsum(spans.ravel())])
        edges[-1] = max(edges[-1], horizon_s)
        return warp(Poisson()(rng, rate_per_s, horizon_s), edges, rates, horizon_s)


class SessionArrivals(NamedTuple):
    """Times (R,), and of each arrival its session and its turn in that session (R,)."""

    times: Times
    session: NDArray[np.int64]
    turn: NDArray[np.int64]


@dataclass(frozen=True)
class Sessions:
    """Turns of sessions: sessions start as a Poisson process, turns follow after lognormal think times.

    The process is open: a turn does not wait for the answer of the one before. Some sessions are under way at
    time 0 and some are cut at the horizon, so the rate is the same throughout.
    """

    min_turns: int = 2
    max_turns: int = 4
    think_median_s: float = 45.0
    """Median gap between two turns of a session, seconds."""
    think_sigma: float = 0.8
    """Standard deviation of the gap's logarithm."""

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
        starts = Poisson()(rng, session_rate, horizon_s + early) - early
        count = rng.integers(self.min_turns, self.max_turns + 1, len(starts))
        gaps = self.think_median_s * rng.lognormal(0, self.think_sigma, (len(starts), self.max_turns))
        gaps[:, 0] = 0
        times = starts[:, None] + np.cumsum(gaps, axis=1)
        turn = np.arange(self.max_turns)
        keep = (turn < count[:, None]) & (times >= 0) & (times < horizon_s)
        session, turns = np.nonzero(keep)
        order = np.argsort(times[keep], kind="stable")
        return SessionArrivals(times[keep][order], session[order], turns[order])


@dataclass(frozen=True)
class Replay:
    """Time stamps of a Mooncake-format file, scaled to the asked rate, from a random place in the file.

    A file shorter than the horizon is repeated.
    """

    path: str | Path = ""
    jitter_ms: float = 3000.0
    """Uniform jitter: public stamps are quantised to 3 s, and queues of such bunches would be an artefact."""

    def __post_init__(self) -> None:
        if not str(self.path) or self.jitter_ms < 0:
            raise ValueError(f"path={str(self.path)!r} must name a trace file, jitter_ms={self.jitter_ms} be >= 0")

    def __call__(self, rng: Rng, rate_per_s: float, horizon_s: float) -> Times:
        """Draw the times of one episode."""
        check_rate(rate_per_s, horizon_s)
        stamps = _stamps(str(self.path), Path(self.path).stat().st_mtime_ns if Path(self.path).exists() else 0)
        stamps = np.sort(stamps - stamps.min() + rng.uniform(0, self.jitter_ms, len(stamps)))
        span = max(float(stamps[-1]) * (len(stamps) + 1) / len(stamps), 1e-9)
        unit = stamps / span * len(stamps)  # one arrival per unit of time on average
        need = rate_per_s * horizon_s
        repeats = int(need / len(stamps)) + 2
        unit = (unit + np.arange(repeats)[:, None] * len(stamps)).ravel() - rng.uniform(0, len(stamps))
        return unit[(unit >= 0) & (unit < need)] / rate_per_s


@cache
def _stamps(path: str, modified_ns: int) -> Times:
    """Time stamps of a file in ms; parsed once for each version of the file."""
    return np.array([record.timestamp_ms for record in read_mooncake(path)], np.float64)


def warp(times: Times, edges_s: Times, rates: Times, horizon_s: float) -> Times:
    """Bend the times of a stationary process so that their rate follows a step function of the same mean.

    Args:
        times: Sorted times in [0, horizon_s), (R,).
        edges_s: Edges of the steps, first 0, last at least the horizon, (S + 1,).
        rates: Relative rate of each step, positive, (S,).
        horizon_s: End of the episode.

    Returns:
        Sorted times in [0, horizon_s), (R,).
    """
    edges = np.minimum(edges_s, horizon_s)
    mass = np.concatenate([[0.0], np.cumsum(np.diff(edges) * rates)])
    keep = np.concatenate([[True], np.diff(mass) > 0])
    bent = np.interp(times / horizon_s * mass[-1], mass[keep], edges[keep])
    return np.minimum(bent, np.nextafter(horizon_s, 0))


for _name, _process in (
    ("poisson", Poisson),
    ("gamma", Gamma),
    ("diurnal", Diurnal),
    ("onoff", OnOff),
    ("sessions", Sessions),
    ("replay", Replay),
):
    ARRIVALS.add(_name, _process)
