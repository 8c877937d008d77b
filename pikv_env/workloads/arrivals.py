"""Arrival processes: when requests come. Each is a frozen dataclass called as `(rng, rate_per_s, horizon_s)`.

`rate_per_s` is the mean rate over the horizon. Processes whose rate moves are normalised by the movement that
was drawn, so that an episode offers the load that was asked for and only its shape is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

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


class CrowdArrivals(NamedTuple):
    """Times (R,), and of each arrival the crowd that it belongs to, -1: none (R,)."""

    times: Times
    crowd: NDArray[np.int64]


@dataclass(frozen=True)
class FlashCrowd:
    """Crowds that gather within seconds and lose interest over minutes, on top of steady arrivals.

    With documents to share, everyone in a crowd asks about the same new one.
    """

    crowds: int = 1
    """Crowds in an episode, each at a random moment of its share of the horizon."""
    peak: float = 6.0
    """Rate at a crowd's height over the quiet rate."""
    rise_s: float = 20.0
    """Time from nothing to the height, seconds."""
    fall_s: float = 120.0
    """Time in which a crowd shrinks to 1/e, seconds."""

    def __post_init__(self) -> None:
        if self.crowds < 1 or self.peak < 1 or not (self.rise_s > 0 and self.fall_s > 0):
            raise ValueError(
                f"crowds={self.crowds}, peak={self.peak}, rise_s={self.rise_s}, fall_s={self.fall_s}: "
                "allowed crowds >= 1, peak >= 1, positive times"
            )

    def __call__(self, rng: Rng, rate_per_s: float, horizon_s: float) -> Times:
        """Draw the times of one episode."""
        return self.draw(rng, rate_per_s, horizon_s).times

    def draw(self, rng: Rng, rate_per_s: float, horizon_s: float) -> CrowdArrivals:
        """Draw times with their crowds."""
        check_rate(rate_per_s, horizon_s)
        begin = (np.arange(self.crowds) + rng.uniform(0, 1, self.crowds)) * horizon_s / self.crowds
        edges = np.linspace(0, horizon_s, 2 + int(horizon_s / min(5.0, self.rise_s)))
        middle = (edges[1:] + edges[:-1]) / 2
        times = warp(Poisson()(rng, rate_per_s, horizon_s), edges, 1 + self._heights(begin, middle).sum(0), horizon_s)
        heights = np.vstack([np.ones(len(times)), self._heights(begin, times)]).cumsum(0)
        return CrowdArrivals(times, (rng.random(len(times)) * heights[-1] >= heights[:-1]).sum(0) - 1)

    def _heights(self, begin: Times, times: Times) -> Times:
        """Rate of each crowd over the quiet rate, (crowds, T)."""
        age = times - begin[:, None]
        shape = np.minimum(age / self.rise_s, np.exp(np.minimum(self.rise_s - age, 0) / self.fall_s))
        return (self.peak - 1) * np.where(age > 0, shape, 0.0)


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
    ("flash", FlashCrowd),
):
    ARRIVALS.add(_name, _process)
