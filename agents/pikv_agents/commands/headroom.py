"""`pikv headroom`: what there is to gain, before any learning."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import StudyOptions

if TYPE_CHECKING:
    from pikv_agents.headroom_config import HeadroomConfig
    from pikv_agents.rollout import Suite
    from pikv_agents.row_file import RowFile


@dataclass(frozen=True, kw_only=True)
class Headroom(Command, StudyOptions):
    """J of fixed settings, heuristics and clairvoyant feasible schedules, by family and pressure.

    headroom = (J_static-tuned - J_feasible) / J_static-tuned. Families under 10 % do not count later, nor do cells
    whose pressure is not reached.
    """

    seeds: int = 3
    """Workloads of every family; quick and scan: 1."""
    cells: tuple[str, ...] = ()
    """FAMILY@PRESSURE, in place of every family at every pressure."""
    scan: bool = False
    """One workload of each cell, a short search and no greedy schedule: to find the cells worth the whole."""
    load: tuple[float, float] | None = None
    """Share of capacity offered, lowest and highest; by default the suite's."""
    rivals: tuple[str, ...] = ()
    """Rivals by search, a column each: names as in `docs/commands.md`; or all."""
    budget_intervals: int | None = None
    """Control intervals that each rival may play in training; by default as many as choosing static_global took."""
    search_horizon_s: float | None = None
    """Arrival horizon of the episodes that rivals search on, model seconds; by default that of the study."""
    static_global: str | None = None
    """The setting that another run chose; by default it is chosen on the training families."""
    rounds: int | None = None
    """Rounds of the search for the best setting of each cell; by default 2, scan 1, quick 0."""
    foresight_rounds: int | None = None
    """Rounds of the search for each lever with foresight; by default 1, scan 0. Not with quick, which plays none."""
    greedy: bool = True
    """Play greedy schedules, a third of the cost of a cell; scan plays none."""
    oracle: bool = False
    """A lower bound and a clairvoyant schedule for each cell, admissions as under static_tuned (docs/oracle.md)."""
    rows: Path | None = None
    """JSON lines, a row as soon as it is measured; rows already there are kept: a run that was cut off goes on."""

    def run(self) -> dict[str, Any]:
        """Print the table, return its rows."""
        from pikv_agents.commands.options import at_least_one, counted, default_threads, open_library, origin, playable
        from pikv_agents.evaluation import priced
        from pikv_agents.headroom import headroom
        from pikv_agents.oracle_study import QUICK, add_oracle
        from pikv_agents.report import tables
        from pikv_agents.rollout import Suite

        at_least_one(seeds=self.seeds)
        library, spec, console = open_library(self.library), self.spec(), tables.console()
        if self.oracle and spec.host > 0:
            raise ValueError(f"--oracle: suite {spec.id!r} has host={spec.host:g}, the oracle knows no host tier")
        cells = [_cell(text) for text in self.cells]
        if cells and self.families:
            raise ValueError("--cells and --families: give one of them")
        families = playable(tuple(dict.fromkeys(f for f, _ in cells)) or self.families, library, spec.all_families())
        training = playable((), library, spec.families["train"])
        update, close = counted("headroom")
        suite = Suite(library, self.config(families=training), self.threads or default_threads(), update)
        console.print(self.announce(), highlight=False, soft_wrap=True)
        config = self._size(spec.pressures)
        file = self._file(suite, config)

        def note(text: str) -> None:
            console.log(text, highlight=False)

        try:
            found = headroom(suite, families, config, note=note, file=file, cells=cells or None)
            if self.oracle:
                add_oracle(suite, found["rows"], config.seeds, QUICK if self.quick else None, file, note)
        finally:
            close()
        console.print(tables.headroom(found["rows"]))
        console.print(f"static_global: {found['static_global']}", highlight=False)
        for name, one in found["rivals"].items():
            told = f"{one['intervals']:,} of {one['budget_intervals']:,} intervals, {one['trials']} trials"
            console.print(f"{name}: {one['setting']} ({told})", highlight=False, soft_wrap=True)
        return found | {"suite": spec.id, "meta": origin() | priced(suite)}

    def _size(self, pressures: tuple[float, ...]) -> HeadroomConfig:
        """The size that the flags ask for."""
        from pikv_agents.headroom_config import HeadroomConfig
        from pikv_agents.rivals import SEARCHES

        if self.scan and self.quick:
            raise ValueError("--scan and --quick: give one of them")
        if self.quick:
            config = HeadroomConfig.quick((0,), pressures)
        elif self.scan:
            config = HeadroomConfig.scan(pressures)
        else:
            config = HeadroomConfig(tuple(range(self.seeds)), pressures)
        if self.quick and self.foresight_rounds is not None:
            raise ValueError("--foresight-rounds: --quick plays no orders that know the future")
        if not self.greedy:
            config = replace(config, lookahead=None)
        given = {name: getattr(self, name) for name in ("rounds", "foresight_rounds")}
        config = replace(config, **{name: value for name, value in given.items() if value is not None})
        rivals = tuple(SEARCHES) if self.rivals == ("all",) else self.rivals
        asked = ("budget_intervals", "search_horizon_s", "static_global")
        return replace(config, rivals=rivals, **{name: getattr(self, name) for name in asked})

    def _file(self, suite: Suite, config: HeadroomConfig) -> RowFile | None:
        """The file of rows, if one is asked for."""
        from pikv_agents.row_file import RowFile

        if self.rows is None:
            return None
        size = {k: v for k, v in asdict(config).items() if k != "pressures"}
        changing = ("families", "pressure")  # of a cell, not of how it is measured
        environment = {k: v for k, v in asdict(suite.config).items() if k not in changing}
        return RowFile(self.rows, {"suite": self.suite, **environment, **size})


def _cell(text: str) -> tuple[str, float]:
    """Family and pressure of `FAMILY@PRESSURE`."""
    family, _, pressure = text.rpartition("@")
    try:
        value = float(pressure)
    except ValueError:
        value = 0.0
    if not family or not 0 < value < float("inf"):
        raise ValueError(f"cells: {text!r}: wanted FAMILY@PRESSURE, such as facts-poisson@2")
    return family, value
