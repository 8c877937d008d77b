"""The relaxation: caps become prices of bytes by rank and time, and every page finds its own cheapest path.

For any prices that are not negative, the sum of those paths' costs less what the caps would cost is a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pikv_env.oracle.costs import change_costs, held_bytes, miss_costs, stage_costs
from pikv_env.oracle.paths import relaxed
from pikv_env.oracle.problem import Paths, Problem
from pikv_env.oracle.room import forbid
from pikv_runtime.ledger.state import F8

ROUNDING = 1e-9
STEEPNESS = 1.5
"""Steps of prices are divided by a bin's length to this power."""
PATIENCE, RECENT = 5, 0.1
"""Steps without a better bound before they become shorter; weight of the last in what is averaged over steps."""


@dataclass(frozen=True)
class Dual:
    """A lower bound and the prices that prove it."""

    value: float
    prices: F8
    """(G, T) J per byte-second, by rank and time bin."""
    edges_s: F8
    """(T + 1,) of the bins."""
    paths: Paths
    """(S, L) what pages would do at these prices; over the caps, as a rule."""
    scale: float = 1.0
    """Share of Polyak's step that the search had come down to."""


class Relaxation:
    """The dual function of a problem under given rank shares.

    Args:
        problem: The problem.
        shares: (G, K) of every iteration's charge by rank.
        bins: Time bins of the prices.
    """

    def __init__(self, problem: Problem, shares: F8, bins: int) -> None:
        self.problem, self.shares = problem, shares
        self.base = stage_costs(problem, shares)
        self.forbidden = forbid(problem, self.base)
        self.miss, (self.encode, self.move) = miss_costs(problem, shares), change_costs(problem)
        self.fixed = fixed_cost(problem, shares)
        self.set_edges(np.linspace(0.0, 1.0, bins + 1) * float(max(problem.end_s[-1], problem.t1_s.max())))

    def set_edges(self, edges_s: F8) -> None:
        """Price bytes in the bins between `edges_s` (T + 1,), from 0 to the end."""
        self.edges_s = edges_s
        self.room = np.stack([_integrate(self.problem, edges_s, g) for g in range(self.problem.ranks)])

    def solve(self, prices: F8) -> tuple[float, F8, Paths]:
        """(value, supergradient (G, T), paths) at `prices` (G, T)."""
        p = self.problem
        hold = np.ascontiguousarray(self._sums(prices, p.t1_s) - self._sums(prices, p.t0_s))
        usage = np.zeros((p.ranks, p.stages))
        paths = np.zeros((p.stages, p.layers), np.int8)
        total = relaxed(
            p.first, p.home, p.flags, p.owner, self.base, p.state_bytes, hold, self.miss / p.layers, self.encode,
            self.move, usage, paths,
        )  # fmt: skip
        used = np.stack([spread(self.edges_s, p.t0_s, p.t1_s, usage[g]) for g in range(p.ranks)])
        value = self.fixed + total - float((prices * self.room).sum())
        over = used - self.room
        over[np.abs(over) < ROUNDING * self.room] = 0.0  # exactly full: steps divided by rounding would be endless
        return value, over, paths

    def _sums(self, prices: F8, at_s: F8) -> F8:
        """(G, n) integral of the prices up to `at_s`."""
        steps = prices * np.diff(self.edges_s)
        sums = np.concatenate([np.zeros((len(prices), 1)), np.cumsum(steps, axis=1)], axis=1)
        return np.stack([np.interp(at_s, self.edges_s, row) for row in sums])


def fixed_cost(problem: Problem, shares: F8) -> float:
    """J of what nobody decides: steps, decode rows, compulsory prompts, waiting elsewhere."""
    seconds = problem.fixed_s + (shares * problem.base_s).sum(axis=0)
    return problem.constant + float((problem.rho * seconds).sum())


def spread(edges_s: F8, t0_s: F8, t1_s: F8, values: F8) -> F8:
    """(T,) integral over every bin of step functions that are `values` in [t0, t1)."""
    out = np.zeros(len(edges_s) - 1)
    for at_s, sign in ((t1_s, 1.0), (t0_s, -1.0)):
        bins = np.clip(np.searchsorted(edges_s, at_s, side="right") - 1, 0, len(out) - 1)
        out += np.bincount(bins, sign * values * (at_s - edges_s[bins]), len(out))
        whole = np.bincount(bins, sign * values, len(out))
        out[:-1] += np.diff(edges_s)[:-1] * np.cumsum(whole[::-1])[::-1][1:]
    return out


def _integrate(p: Problem, edges_s: F8, rank: int) -> F8:
    """(T,) byte-seconds that rank's cap allows in every bin. What is held while the machine idles before an iteration
    is held in that iteration too, so its cap holds for both."""
    since = np.append(0.0, p.end_s[:-1])
    return spread(edges_s, since, p.end_s, p.cap[rank].astype(np.float64))


def ascend(
    relaxation: Relaxation, prices: F8, upper: float, rounds: int, scale: float = 1.0, slack: float = 0.002
) -> tuple[Dual, F8]:
    """Raise the bound by deflected Polyak steps towards `upper`, shorter whenever they do not help.

    Bins differ in length by factors of thousands: a burst of one iteration needs a thousand times the price per second
    of a plateau, and its overflow counts a thousandth of the byte-seconds. So steps are taken in a scale of their own,
    by `STEEPNESS`.

    Args:
        relaxation: The dual function.
        prices: (G, T) to start from.
        upper: A feasible value.
        rounds: Evaluations.
        scale: Share of Polyak's step to begin with.
        slack: Ends when the bound is within this share of `upper`.

    Returns:
        The best bound, and bytes that pages would hold, (G, K), averaged over the last steps: where they are over a
        cap, prices are not there yet, or bins are too long.
    """
    value, gradient, paths = relaxation.solve(prices)
    best = Dual(value, prices, relaxation.edges_s, paths)
    held = held_bytes(relaxation.problem, paths).astype(np.float64)
    direction, since = np.zeros_like(prices), 0
    weight = np.diff(relaxation.edges_s) ** -STEEPNESS
    for n in range(rounds):
        if upper - best.value <= slack * abs(upper):
            break
        gradient = np.where((prices <= 0) & (gradient < 0), 0.0, gradient)
        direction = gradient + 0.6 * direction
        norm = float((weight * direction * direction).sum())
        if norm == 0:
            break
        prices = np.maximum(0.0, prices + scale * max(upper - value, 1e-4 * upper) / norm * weight * direction)
        value, gradient, paths = relaxation.solve(prices)
        held += max(1.0 / (n + 2), RECENT) * (held_bytes(relaxation.problem, paths) - held)
        since += 1
        if value > best.value:
            best, since = Dual(value, prices, relaxation.edges_s, paths), 0
        elif since >= PATIENCE:
            scale, since, prices, direction = 0.5 * scale, 0, best.prices, np.zeros_like(prices)
            value, gradient, paths = relaxation.solve(prices)
    return replace(best, scale=scale), held


def refine(relaxation: Relaxation, dual: Dual, held: F8) -> F8:
    """Cut the bins where a run of iterations in which `held` (G, K) is over a cap begins and ends, and where the upper
    half of its excess does. Sets the relaxation's bins and returns the same prices over them.

    A cap is counted over a whole bin: in a bin longer than the burst, what is over it is made up for by room elsewhere.
    """
    p, cuts = relaxation.problem, [dual.edges_s]
    for excess in held - p.cap:
        for begin, end in _runs(excess > 0):
            inside = excess[begin:end]
            for low, high in [(0, end - begin), *_runs(inside > 0.5 * inside.max())]:
                cuts.append(np.array([p.start_s[begin + low], p.end_s[begin + high - 1]]))
    edges = np.unique(np.concatenate(cuts))
    relaxation.set_edges(edges)
    return np.ascontiguousarray(dual.prices[:, np.searchsorted(dual.edges_s, edges[:-1], side="right") - 1])


def _runs(true: np.ndarray) -> list[tuple[int, int]]:
    """[begin, end) of the stretches in which `true` (n,) holds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], true.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
