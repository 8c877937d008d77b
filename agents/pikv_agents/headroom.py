"""What there is to gain, before any learning: fixed settings, heuristics and a feasible clairvoyant schedule.

headroom = (J_static-tuned − J_feasible) / J_static-tuned, where static-tuned is the best setting of the grid in
hindsight per workload, and J_feasible the least J of anything that was really played on that workload.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pikv_agents.greedy import Lookahead, greedy_score
from pikv_agents.rivals import SEARCHES, Found, Trials
from pikv_agents.rollout import Episode, Outcome, Suite, reaching
from pikv_agents.static_grid import QUICK_GRID, STATIC_GRID, best_static
from pikv_env.suites import PRESSURES
from pikv_env.workloads.families import FAMILIES
from pikv_runtime.objective import Score

CAPPED = "capped_exact/lru"
HEURISTICS = (
    "lazy/lru",
    "lazy/h2o",
    "lazy/streaming_llm",
    "pressure_proportional/lru",
    "pressure_proportional/h2o",
    "pressure_proportional/streaming_llm",
    "load_proportional/h2o",
    "load_proportional:fan_out=0.2/h2o",
    "lru",
    "h2o",
    "streaming_llm",
    "lazy/h2o+two_queue",
    "lazy/h2o+s3fifo",
    "lazy/h2o+sieve",
    "lazy/h2o+arc",
    "lazy/h2o+tlru",
)
QUICK_HEURISTICS = ("lazy/h2o", "pressure_proportional/lru", "load_proportional/h2o", "h2o")


@dataclass(frozen=True)
class HeadroomConfig:
    """Size of the study."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Workloads of every family."""
    pressures: tuple[float, ...] = PRESSURES
    grid: tuple[str, ...] = STATIC_GRID
    """Static settings."""
    heuristics: tuple[str, ...] = HEURISTICS
    lookahead: Lookahead = field(default_factory=Lookahead)
    candidates: int = 6
    """Policies that the greedy schedule chooses from: the best in hindsight."""
    rivals: tuple[str, ...] = ()
    """Rivals by search, names in `rivals.SEARCHES`: each finds one policy on the training episodes."""
    budget_intervals: int | None = None
    """Control intervals that each may play; None: as many as choosing static-global took."""
    search_seed: int = 0
    """All that searches draw derives from it."""

    def __post_init__(self) -> None:
        for name in self.rivals:
            SEARCHES[name]

    @classmethod
    def quick(cls, seeds: tuple[int, ...] = (0,), pressures: tuple[float, ...] = (2.0,)) -> HeadroomConfig:
        """For a first look: with a horizon of 600 s, three families take about a minute of one core."""
        return cls(seeds, pressures, QUICK_GRID, QUICK_HEURISTICS, Lookahead(20, 50), candidates=4)


def headroom(
    suite: Suite,
    families: Sequence[str],
    config: HeadroomConfig | None = None,
    training: Sequence[str] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The headroom table.

    Args:
        suite: Workloads; keeps what heuristics scored, for a later `evaluate`.
        families: Families to report.
        config: Size.
        training: Families over which static-global is chosen; by default those of `families` that train, or the
            environment's.
        note: Told in words what is being done.

    Returns:
        `rows` (see `report.schema.HeadroomRow`; also the heuristic's name, J by workload and the greedy choice's J),
        `static_global`, `grid`, `heuristics`, `grid_intervals`, and of each rival its setting and budget.
    """
    config = config or HeadroomConfig()
    training = list(training or [f for f in families if FAMILIES[f].split == "train"] or suite.config.families)
    note(f"static settings on {', '.join(training)}")
    cells = [(f, p) for f in families for p in config.pressures]
    train_episodes = [Episode(f, s, p) for f in training for p in config.pressures for s in config.seeds]
    static_global = best_static(suite, config.grid, train_episodes)
    grid_intervals = intervals(suite, config.grid, train_episodes)
    searched = search(suite, train_episodes, config, config.budget_intervals or grid_intervals, note)
    rows = []
    for family, pressure in cells:
        note(f"{family} at pressure {pressure:g}")
        rows.append(_row(suite, family, pressure, config, static_global, searched))
    return {
        "rows": rows,
        "static_global": static_global,
        "training": training,
        "grid": list(config.grid),
        "heuristics": list(config.heuristics),
        "seeds": list(config.seeds),
        "grid_intervals": grid_intervals,
        "rivals": {n: f.to_dict(config.budget_intervals or grid_intervals) for n, f in searched.items()},
    }


def intervals(suite: Suite, specs: Sequence[str], episodes: Sequence[Episode]) -> int:
    """Control intervals that playing settings on episodes takes; what the suite knows is not played again."""
    played = suite.run_all({spec: spec for spec in specs}, episodes)
    return int(sum(o.counters["decisions"] for rows in played.values() for o in rows))


def search(
    suite: Suite, episodes: Sequence[Episode], config: HeadroomConfig, budget: int, note: Callable[[str], None]
) -> dict[str, Found]:
    """What every rival of `config` finds on training episodes, each within `budget` control intervals."""
    found = {}
    for name in config.rivals:
        rng = np.random.default_rng([config.search_seed, zlib.crc32(name.encode())])
        order = [episodes[int(k)] for k in np.random.default_rng(config.search_seed).permutation(len(episodes))]
        found[name] = SEARCHES[name](Trials(suite, order, budget), rng)
        note(f"{name}: {found[name].setting} after {found[name].intervals:,} of {budget:,} intervals")
    return found


def _row(
    suite: Suite,
    family: str,
    pressure: float,
    config: HeadroomConfig,
    static_global: str,
    searched: Mapping[str, Found],
) -> dict[str, Any]:
    """One family at one pressure."""
    episodes = [Episode(family, seed, pressure) for seed in config.seeds]
    specs = dict.fromkeys([CAPPED, *config.grid, *config.heuristics])
    played = suite.run_all({spec: spec for spec in specs}, episodes)
    rivals = suite.run_all({name: found.policy for name, found in searched.items()}, episodes)
    tuned = [min(config.grid, key=lambda spec: played[spec][k].score.J) for k in range(len(episodes))]
    heuristic = min(config.heuristics, key=lambda spec: float(np.mean(_js(played[spec]))))
    greedy = [_greedy(suite, e, played, k, config) for k, e in enumerate(episodes)]
    scores = {
        "capped_exact": [o.score for o in played[CAPPED]],
        "static_global": [o.score for o in played[static_global]],
        "static_tuned": [played[spec][k].score for k, spec in enumerate(tuned)],
        "best_heuristic": [o.score for o in played[heuristic]],
        "greedy": greedy,
        **{name: [o.score for o in outcomes] for name, outcomes in rivals.items()},
    }
    outcomes = [*played.values(), *rivals.values()]
    feasible = [min(greedy[k].J, *(one[k].score.J for one in outcomes)) for k in range(len(episodes))]
    tuned_J = float(np.mean([s.J for s in scores["static_tuned"]]))
    return {
        "family": family,
        "split": FAMILIES[family].split,
        **reaching(pressure, played[CAPPED]),
        "policies": {name: mean_score(rows) for name, rows in scores.items()},
        "headroom": (tuned_J - float(np.mean(feasible))) / tuned_J,
        "best_heuristic": heuristic,
        "heuristics": {spec: float(np.mean(_js(played[spec]))) for spec in config.heuristics},
        "static_tuned": tuned,
        "feasible": feasible,
    }


def _greedy(suite: Suite, episode: Episode, played: dict[str, list[Outcome]], k: int, config: HeadroomConfig) -> Score:
    """The schedule that chooses among the policies that did best on this very workload."""
    ranked = sorted(played, key=lambda spec: played[spec][k].score.J)
    return greedy_score(suite, episode, ranked[: config.candidates], ranked[0], config.lookahead)


def _js(outcomes: Sequence[Outcome]) -> list[float]:
    return [outcome.score.J for outcome in outcomes]


def mean_score(scores: Sequence[Score]) -> dict[str, float]:
    """Means of J and its parts under the names of `evaluate --json`."""
    parts = {"J": "J", "latency": "latency", "memory": "memory", "fidelity": "fidelity"}
    return {name: float(np.mean([getattr(s, part) for s in scores])) for name, part in parts.items()}
