"""Interquartile means, stratified bootstrap intervals, paired differences, probability of improvement.

A score table is `(runs,)` or `(tasks, seeds)`; ragged tables are sequences of one array per task. A task is a
stratum: resampling draws seeds within each task and never mixes tasks, which are fixed. Costs (J) are scores
of which less is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Scores = ArrayLike | Sequence[ArrayLike]
Table = list[NDArray[np.float64]]
Statistic = Literal["iqm", "mean"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def to_dict(self) -> dict[str, float]:
        """Plain floats, ready for JSON."""
        return asdict(self)


def as_table(scores: Scores, least: int = 1) -> Table:
    """One float64 array per task; ValueError on NaN, infinity or fewer than `least` runs in a task."""
    rows = list(scores) if not isinstance(scores, np.ndarray) else list(np.atleast_1d(scores))
    if not rows:
        raise ValueError("scores are empty: at least one run is needed")
    flat = np.ndim(rows[0]) == 0
    table = [np.asarray(row, np.float64) for row in ([rows] if flat else rows)]
    for task, row in enumerate(table):
        if row.ndim != 1:
            raise ValueError(f"task {task} has {row.ndim} dimensions: allowed are (runs,) and (tasks, seeds)")
        if len(row) < least:
            raise ValueError(f"task {task} has {len(row)} run(s): at least {least} are needed")
        if not np.isfinite(row).all():
            raise ValueError(f"scores of task {task} hold NaN or infinity: only finite scores are allowed")
    return table


def _iqm_last(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return stats.trim_mean(values, 0.25, axis=-1)


def _mean_last(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.mean(values, axis=-1)


_STATISTICS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "iqm": _iqm_last,
    "mean": _mean_last,
}


def _reducer(statistic: str) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    if statistic not in _STATISTICS:
        raise ValueError(f"statistic={statistic!r}: allowed {', '.join(_STATISTICS)}")
    return _STATISTICS[statistic]


def iqm(scores: Scores) -> float:
    """Interquartile mean over all runs of all tasks: a quarter (rounded down) is dropped at each end."""
    return float(_iqm_last(np.concatenate(as_table(scores))))


def _bootstrap(
    strata: Table,
    statistic: Callable[..., NDArray[np.float64]],
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Percentile interval; each stratum is resampled by itself, as SciPy does for independent samples."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: allowed between 0 and 1")
    value = float(statistic(*strata, axis=-1))
    found = stats.bootstrap(
        strata,
        statistic,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        batch=256,  # bounds the memory of pairwise comparisons
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high), confidence)


def bootstrap_interval(
    scores: Scores,
    statistic: Statistic = "iqm",
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Stratified bootstrap interval of the IQM (or mean) over all runs; needs two runs in every task."""
    reduce = _reducer(statistic)

    def pooled(*samples: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return reduce(np.concatenate(samples, axis=axis))

    return _bootstrap(as_table(scores, least=2), pooled, confidence, resamples, seed)


def paired_difference(
    candidate: Scores,
    baseline: Scores,
    statistic: Statistic = "mean",
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Interval of candidate − baseline; entry i of both is one workload; below zero: candidate costs less.

    Pairing removes what both share (a hard workload is hard for both), so intervals are much narrower than
    those of the two means.
    """
    first, second = as_table(candidate), as_table(baseline)
    shapes = [len(row) for row in first], [len(row) for row in second]
    if shapes[0] != shapes[1]:
        raise ValueError(f"candidate has {shapes[0]} runs by task, baseline {shapes[1]}: pairs need the same")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return bootstrap_interval(differences, statistic, confidence, resamples, seed)


def paired_differences(
    candidate: Mapping[str, ArrayLike], baseline: Mapping[str, ArrayLike], **options: Any
) -> dict[str, Interval]:
    """`paired_difference` by task (families, workloads) and, under `"all"`, over all tasks that both have."""
    shared = [task for task in candidate if task in baseline]
    if not shared:
        raise ValueError(f"candidate has {sorted(candidate)}, baseline {sorted(baseline)}: no task is shared")
    found = {task: paired_difference(candidate[task], baseline[task], **options) for task in shared}
    return found | {"all": paired_difference([candidate[t] for t in shared], [baseline[t] for t in shared], **options)}


def _win_share(candidate: NDArray[np.float64], baseline: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mann-Whitney U over n·m: share of pairs in which candidate costs less; ties count half."""
    first, second = candidate[..., :, None], baseline[..., None, :]
    return ((first < second) + 0.5 * (first == second)).mean((-2, -1))


def probability_of_improvement(
    candidate: Scores,
    baseline: Scores,
    lower_is_better: bool = True,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Chance that a run of `candidate` beats a run of `baseline` on the same task, averaged over tasks."""
    first, second = as_table(candidate, least=2), as_table(baseline, least=2)
    if len(first) != len(second):
        raise ValueError(f"candidate has {len(first)} tasks, baseline {len(second)}: need the same tasks")
    tasks = len(first)

    def averaged(*samples: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        pairs = zip(samples[:tasks], samples[tasks:], strict=True)
        shares = np.mean([_win_share(a, b) for a, b in pairs], axis=0)
        return shares if lower_is_better else 1.0 - shares

    return _bootstrap(first + second, averaged, confidence, resamples, seed)
