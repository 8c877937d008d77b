"""Size of a headroom study: what is played in each cell, and how hard is searched."""

from __future__ import annotations

from dataclasses import dataclass, field

from pikv_agents.greedy import Lookahead
from pikv_agents.rivals import SEARCHES
from pikv_agents.static_grid import COARSE_GRID, QUICK_GRID
from pikv_env.suites import PRESSURES

CAPPED = "capped_exact/lru"
HEURISTICS = (
    "lazy/lru",
    "lazy/h2o",
    "lazy/streaming_llm",
    "pressure_proportional/lru",
    "pressure_proportional/h2o",
    "pressure_proportional/streaming_llm",
    "pressure_proportional:start=0,evict=0/h2o",
    "pressure_proportional:start=0,evict=0/h2o+arc",
    "load_proportional/h2o",
    "load_proportional:fan_out=0.2/h2o",
    "utility_greedy/h2o",
    "lru",
    "h2o",
    "streaming_llm",
    "lazy/h2o+two_queue",
    "lazy/h2o+s3fifo",
    "lazy/h2o+sieve",
    "lazy/h2o+arc",
    "lazy/h2o+tlru",
    "lazy/h2o+lrb",
)
QUICK_HEURISTICS = ("lazy/h2o", "pressure_proportional/lru", "load_proportional/h2o", "h2o")
SCAN_HEURISTICS = (*QUICK_HEURISTICS, "utility_greedy/h2o", "lazy/h2o+arc")


@dataclass(frozen=True)
class HeadroomConfig:
    """Size of the study."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Workloads of every family."""
    pressures: tuple[float, ...] = PRESSURES
    grid: tuple[str, ...] = COARSE_GRID
    """Static settings: what static-global is chosen from, and where the search for static-tuned starts."""
    heuristics: tuple[str, ...] = HEURISTICS
    lookahead: Lookahead | None = field(default_factory=lambda: Lookahead(30, 60))
    """Of greedy schedules; None: none are played."""
    candidates: int = 4
    """Policies that a greedy schedule chooses from: the best in hindsight."""
    rivals: tuple[str, ...] = ()
    """Rivals by search, names in `rivals.SEARCHES`: each finds one policy on the training episodes."""
    budget_intervals: int | None = None
    """Control intervals that each may play; None: as many as choosing static-global took."""
    search_horizon_s: float | None = None
    """Arrival horizon of the episodes that rivals search on; None: the suite's. Shorter ones allow more trials."""
    search_seed: int = 0
    """All that searches draw derives from it."""
    rounds: int = 2
    """Rounds of the search around the grid's best setting of a cell; 0: static-tuned is of the grid."""
    foresight_rounds: int | None = 1
    """Rounds of the same for constant settings with clairvoyant orders; None: none are played."""
    static_global: str | None = None
    """The setting that another run chose; None: it is chosen on the training families."""

    def __post_init__(self) -> None:
        for name in self.rivals:
            SEARCHES[name]
        if self.static_global and self.rivals and self.budget_intervals is None:
            raise ValueError("static_global is given, so no grid is played on training families: give budget_intervals")

    @classmethod
    def quick(cls, seeds: tuple[int, ...] = (0,), pressures: tuple[float, ...] = (2.0,)) -> HeadroomConfig:
        """For a first look: with a horizon of 600 s, three families take about a minute of one core."""
        return cls(
            seeds, pressures, QUICK_GRID, QUICK_HEURISTICS, Lookahead(20, 50), candidates=4,
            rounds=0, foresight_rounds=None,
        )  # fmt: skip

    @classmethod
    def scan(cls, pressures: tuple[float, ...] = PRESSURES) -> HeadroomConfig:
        """To find the cells worth the whole: one workload each, one round of search, no greedy schedule."""
        return cls(
            (0,), pressures, heuristics=SCAN_HEURISTICS, lookahead=None, rounds=1, foresight_rounds=0
        )  # fmt: skip
