"""Prices from serving logs: what the iterations of live runs, on one rank or several, say that the machine charges now.

`pikv calibrate` measures a machine once, one rank, with phases made for it. A log holds how long every iteration took,
and replaying it says what each did; so a profile can be fitted to the very state of the machine that served.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pikv_env.log_replay import LogPlayer
from pikv_runtime import ledger as L
from pikv_runtime.ledger.state import Ledger, Price, Tally
from pikv_runtime.profiles import Profile
from pikv_runtime.serving_log import LogError, ServingLog

F8 = NDArray[np.float64]

BY_RANK = (
    Price.PREFILL_TOKEN, Price.PREFILL_PAIR, Price.DECODE_TOKEN, Price.READ_NATIVE, Price.READ_BF16, Price.READ_INT8,
    Price.READ_INT4, Price.SELECT_PAGE,
)  # fmt: skip
"""Prices of which each rank pays its own; the slowest rank's count."""
FITTED = (Price.STEP, *BY_RANK, Price.ENCODE_PAGE, Price.DECISION)
UNBOUND = (Price.STEP, Price.DECISION)
"""Fitted without a prior: a step bears whatever is paid once an iteration; and a profile's decision is the policy's
alone, while telemetry and the enforcing of the control lie between two iterations, too."""
PRIOR_ROWS = 0.02
"""Weight of the prior, each price as so large a share of all iterations: it decides what they cannot tell apart."""
TRIMMED = 0.05
ROUNDS = 4


@dataclass(frozen=True)
class Work:
    """What iterations did. T iterations."""

    counts: F8
    """(T, ranks, len(Price)): how much of each price a rank pays; what all pay together is in every rank's row."""
    seconds: F8
    """(T,)"""


@dataclass(frozen=True)
class Fitted:
    """A price list fitted to logs."""

    prices: F8
    """(len(Price),) a row of the ledger."""
    error: float
    """Median absolute relative error of an iteration's time."""
    iterations: int


def profile_of(fit: Fitted, name: str, geometry: str, ranks: int) -> Profile:
    """A fitted price list as a profile, for that geometry and that many ranks."""
    return Profile(
        name=name,
        geometry=geometry,
        source=f"fitted to the logs of {fit.iterations} iterations served on {ranks} rank(s)",
        date=datetime.date.today().isoformat(),
        fit_error=round(fit.error, 4),
        prices_s={p.name.lower(): float(fit.prices[p]) for p in Price},
    )


class _Counter(LogPlayer):
    """Replays a log and counts every planned iteration's work."""

    def __init__(self, log: ServingLog) -> None:
        super().__init__(log, None)
        self.rows: list[F8] = []

    def planned(self) -> None:
        self.rows.append(rank_counts(self.state))


def rank_counts(s: Ledger) -> F8:
    """How much of each price the ranks pay for the planned iteration of lane 0, (ranks, len(Price)).

    Asked of the ledger's own price list, as `iteration_log.priced_counts` does. Leaves prices, tally and pending time
    as they were.
    """
    prices, tally, pending = s.prices[0].copy(), s.tally[0].copy(), float(s.pending_s[0])
    counts = np.zeros((int(s.ranks), len(Price)))
    for p in (*BY_RANK, Price.LINK_BYTE, Price.COLLECTIVE):
        s.prices[0], s.pending_s[0] = 0.0, 0.0
        s.prices[0, p], s.prices[0, Price.QUERY_BYTES] = 1.0, prices[Price.QUERY_BYTES]
        together = L.price(s, 0)
        counts[:, p] = s.rank_s[0, :, : int(s.ranks)].sum(axis=0) if p in BY_RANK else together
    counts[:, Price.STEP] = 1.0
    s.prices[0], s.tally[0], s.pending_s[0] = prices, tally, pending
    return counts


def work_of(log: ServingLog) -> Work:
    """Replay `log` and count.

    Raises:
        LogError: the log cannot be replayed; it names where.
    """
    counter, a = _Counter(log), log.arrays
    difference = counter.play()
    if difference:
        raise LogError(f"the log cannot be replayed ({difference}): nothing can be learned from its times")
    counts, ranks = np.array(counter.rows), int(log.header["ranks"])
    before = np.vstack([np.zeros((1, a["tally"].shape[1])), a["tally"][:-1]])
    done = a["tally"] - before
    counts[:, :, Price.ENCODE_PAGE] = done[:, None, Tally.ENCODED_PAGES] / ranks
    if log.header["clock"] == "wall":  # there the tally's link bytes are those of moved pages alone
        counts[:, :, Price.LINK_BYTE] += done[:, None, Tally.LINK_BYTES] / ranks
    decided = np.bincount(a["decided_at"], minlength=len(counts) + 1)[: len(counts)]
    counts[:, :, Price.DECISION] = decided[:, None]
    return Work(counts, a["seconds"].copy())


def fit_log_prices(logs: Sequence[ServingLog], prior: F8) -> Fitted:
    """The price list under which the iterations of `logs` take the times that they took.

    Non-negative least squares of relative errors, drawn towards `prior` scaled to this machine's speed where iterations
    cannot tell prices apart; refitted without the worst `TRIMMED`, for the rank that is slowest under the last fit.
    Links between ranks keep their prior. At last all prices are scaled until their sum over the logs is the time that
    went by: latency adds up means, and relative errors would aim at something like the median.

    Args:
        logs: of live runs with equally many ranks.
        prior: (len(Price),) a row of the ledger.

    Raises:
        LogError: a log cannot be replayed, or holds nothing.
    """
    works = [work_of(log) for log in logs]
    counts, seconds = (np.concatenate([getattr(w, name) for w in works]) for name in ("counts", "seconds"))
    if len(seconds) == 0:
        raise LogError("the logs hold no iterations")
    prices = prior * (seconds.sum() / _slowest(counts, prior).sum())
    prices[Price.QUERY_BYTES] = prior[Price.QUERY_BYTES]
    start, keep = prices.copy(), np.ones(len(seconds), np.bool_)
    for _ in range(ROUNDS):
        prices = _solve(_rows(counts, prices)[keep], seconds[keep], start)
        wrong = np.abs(_slowest(counts, prices) / seconds - 1)
        keep = wrong <= np.quantile(wrong, 1 - TRIMMED)
    scale = seconds.sum() / _slowest(counts, prices).sum()
    prices *= scale
    prices[Price.QUERY_BYTES] = prior[Price.QUERY_BYTES]  # bytes, not seconds
    return Fitted(prices, float(np.median(np.abs(_slowest(counts, prices) / seconds - 1))), len(seconds))


def _rows(counts: F8, prices: F8) -> F8:
    """The work of the slowest rank of each iteration under `prices`, (T, len(Price))."""
    by_rank = counts[:, :, list(BY_RANK)] @ prices[list(BY_RANK)]
    rows: F8 = counts[np.arange(len(counts)), by_rank.argmax(axis=1)]
    return rows


def _slowest(counts: F8, prices: F8) -> F8:
    """Modelled seconds of each iteration, (T,)."""
    seconds_per = prices.copy()
    seconds_per[Price.QUERY_BYTES] = 0.0
    modelled: F8 = _rows(counts, prices) @ seconds_per
    return modelled


def _solve(rows: F8, seconds: F8, start: F8) -> F8:
    """Prices with the fitted ones chosen, the others as in `start`."""
    from scipy.optimize import nnls

    fitted, kept = list(FITTED), [p for p in Price if p not in FITTED and p != Price.QUERY_BYTES]
    left = np.maximum(seconds - rows[:, kept] @ start[kept], 0.0) / seconds
    # In units of the starting price, so that the prior asks each of them to be 1.
    relative = rows[:, fitted] * start[fitted] / seconds[:, None]
    weight = np.full(len(fitted), np.sqrt(PRIOR_ROWS * len(seconds) / len(fitted)))
    weight[[fitted.index(p) for p in UNBOUND]] = 0.0
    lhs, rhs = np.vstack([relative, np.diag(weight)]), np.concatenate([left, weight])
    prices = start.copy()
    prices[fitted] = nnls(lhs, rhs)[0] * start[fitted]
    return prices
