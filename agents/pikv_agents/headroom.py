"""What there is to gain, before any learning: fixed settings, heuristics and feasible clairvoyant schedules.

headroom = (J_static-tuned − J_feasible) / J_static-tuned, where static-tuned is the best constant setting in hindsight
per workload (a grid, then a search around its best: `hindsight`), and J_feasible the least J of anything that was
really played on that workload, orders that know the future included (`foresight`, `greedy`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pikv_agents.foresight import foresight
from pikv_agents.greedy import greedy_score
from pikv_agents.headroom_config import CAPPED, HeadroomConfig
from pikv_agents.hindsight import AXES, Tuned, tune
from pikv_agents.rivals import SEARCHES, Found, Trials
from pikv_agents.rollout import Episode, Outcome, Suite, mean_costs, reaching
from pikv_agents.row_file import RowFile
from pikv_agents.static_grid import Table, best_single, best_static
from pikv_env.workloads.families import FAMILIES
from pikv_runtime.controllers import is_spec
from pikv_runtime.objective import Score


def headroom(
    suite: Suite,
    families: Sequence[str],
    config: HeadroomConfig | None = None,
    training: Sequence[str] | None = None,
    note: Callable[[str], None] = lambda text: None,
    file: RowFile | None = None,
    cells: Sequence[tuple[str, float]] | None = None,
) -> dict[str, Any]:
    """The headroom table.

    Args:
        suite: Workloads; keeps what heuristics scored, for a later `evaluate`.
        families: Families to report.
        config: Size.
        training: Families over which static-global is chosen; by default those of `families` that train, or the
            environment's.
        note: Told in words what is being done.
        file: Keeps rows as they are measured; those in it are not measured again.
        cells: Family and pressure of each row; None: every family at every pressure.

    Returns:
        `rows` (see `report.schema.HeadroomRow`; also the heuristic's name, J by workload and the levers),
        `static_global`, `grid`, `heuristics`, `grid_intervals`, and of each rival its setting and budget.
    """
    config = config or HeadroomConfig()
    training = list(training or [f for f in families if FAMILIES[f].split == "train"] or suite.config.families)
    budgeted = not config.rivals or config.budget_intervals is not None
    chosen = dict(_kept(file, kind="chosen") or {"static_global": config.static_global, "grid_intervals": None})
    episodes = [Episode(f, s, p) for f in training for p in config.pressures for s in config.seeds]
    there = {*families, *(row["family"] for row in (file.rows if file is not None else ()) if "family" in row)}
    if chosen["static_global"] is None and not (budgeted and there >= set(training)):
        note(f"static settings on {', '.join(training)}")
        chosen["static_global"] = best_static(suite, config.grid, episodes)
        chosen["grid_intervals"] = intervals(suite, config.grid, episodes)
    budget = config.budget_intervals or chosen["grid_intervals"] or 0
    searched = _search(suite, episodes, config, budget, note, chosen.get("rivals", {}))
    chosen["rivals"] = {name: found.to_dict(budget) for name, found in searched.items()}
    if file is not None and _kept(file, kind="chosen") is None:
        file.add({"kind": "chosen", **chosen})
    rows = []
    for family, pressure in cells or [(f, p) for f in families for p in config.pressures]:
        row = _kept(file, family=family, pressure=pressure)
        if row is None:
            note(f"{family} at pressure {pressure:g}")
            row = _row(suite, family, pressure, config, chosen["static_global"], searched)
            if file is not None:
                file.add(row)
        rows.append(row)
    if chosen["static_global"] is None:
        measured = rows if file is None else file.rows
        chosen |= _choose([row for row in measured if row.get("family") in training], config.grid)
    for row in rows:
        row["policies"]["static_global"] = row["grid"][chosen["static_global"]]
    return {
        "rows": rows,
        **{name: chosen[name] for name in ("static_global", "grid_intervals", "rivals")},
        "training": training,
        "grid": list(config.grid),
        "heuristics": list(config.heuristics),
        "seeds": list(config.seeds),
        "rounds": config.rounds,
    }


def _choose(rows: Sequence[Mapping[str, Any]], grid: Sequence[str]) -> dict[str, Any]:
    """Static-global from rows of training families, in which the whole grid was played."""
    scores = {spec: [J for row in rows for J in row["grid"][spec]["scores"]] for spec in grid}
    return {"static_global": best_single(scores), "grid_intervals": sum(row["grid_intervals"] for row in rows)}


def _kept(file: RowFile | None, **wanted: Any) -> dict[str, Any] | None:
    """The row of a file that has these values."""
    rows = file.rows if file is not None else []
    return next((row for row in rows if all(row.get(k) == v for k, v in wanted.items())), None)


def intervals(suite: Suite, specs: Sequence[str], episodes: Sequence[Episode]) -> int:
    """Control intervals that playing settings on episodes takes; what the suite knows is not played again."""
    played = suite.run_all({spec: spec for spec in specs}, episodes)
    return int(sum(o.counters["decisions"] for rows in played.values() for o in rows))


def _search(
    suite: Suite,
    episodes: Sequence[Episode],
    config: HeadroomConfig,
    budget: int,
    note: Callable[[str], None],
    kept: Mapping[str, Mapping[str, Any]],
) -> dict[str, Found]:
    """What every rival of `config` finds on training episodes, each within `budget` control intervals.

    What an earlier run kept is taken from there, if it is a setting; what was learned is learned again.
    """
    found = {}
    if config.search_horizon_s is not None:
        suite = Suite(suite.library, replace(suite.config, horizon_s=config.search_horizon_s), suite.threads)
    for name in config.rivals:
        if name in kept and is_spec(kept[name]["setting"]):
            told = {key: kept[name][key] for key in ("setting", "intervals", "trials", "score")}
            found[name] = Found(told["setting"], **told)
            continue
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
    static_global: str | None,
    searched: Mapping[str, Found],
) -> dict[str, Any]:
    """One family at one pressure; without the column of static-global, which may not be chosen yet."""
    episodes = [Episode(family, seed, pressure) for seed in config.seeds]
    fixed = tune(suite, episodes, config.grid, AXES, config.rounds)
    depth = config.foresight_rounds
    foreseen = {} if depth is None else foresight(suite, episodes, fixed, depth)
    grid = dict.fromkeys([*config.grid, *([static_global] if static_global else [])])
    played = suite.run_all({spec: spec for spec in dict.fromkeys([CAPPED, *grid, *config.heuristics])}, episodes)
    rivals = suite.run_all({name: found.policy for name, found in searched.items()}, episodes)
    everything: Table = {}
    for one in (fixed, *foreseen.values()):
        everything |= one.table
    everything |= {spec: _js(outcomes) for spec, outcomes in played.items()}  # these were all played to the end
    schedules = _schedules(suite, episodes, fixed.table, everything, config)
    heuristic = min(config.heuristics, key=lambda spec: float(np.mean(_js(played[spec]))))
    tuned = fixed.by_episode()
    scores = {
        "capped_exact": [o.score for o in played[CAPPED]],
        "static_tuned": [suite.run(spec, [episode])[0].score for spec, episode in zip(tuned, episodes, strict=True)],
        "best_heuristic": [o.score for o in played[heuristic]],
        **{name: [o.score for o in outcomes] for name, outcomes in rivals.items()},
        **{name: found for name, found in schedules.items() if name == "greedy"},
    }
    js = [*everything.values(), *map(_js, rivals.values()), *([s.J for s in one] for one in schedules.values())]
    feasible = np.min(js, axis=0)
    least = np.array(fixed.least())
    return {
        "family": family,
        "split": FAMILIES[family].split,
        **reaching(pressure, played[CAPPED]),
        "policies": {name: mean_score(rows) for name, rows in scores.items()},
        "headroom": float(1 - np.mean(feasible) / least.mean()),
        "headroom_by_workload": (1 - feasible / least).tolist(),
        "best_heuristic": heuristic,
        "heuristics": {spec: float(np.mean(_js(played[spec]))) for spec in config.heuristics},
        "static_tuned": tuned,
        "settings_tried": len(fixed.table),
        "grid": {spec: mean_costs(played[spec]) | {"scores": _js(played[spec])} for spec in grid},
        "grid_intervals": intervals(suite, config.grid, episodes),
        "levers": _levers(fixed, foreseen, schedules),
        "feasible": feasible.tolist(),
    }


def _schedules(
    suite: Suite, episodes: Sequence[Episode], constant: Table, everything: Table, config: HeadroomConfig
) -> dict[str, list[Score]]:
    """Greedy schedules: `greedy` among all that was played, and where some of it knows the future `switching`, among
    constant settings that do not. Each chooses among the policies that did best on its workload."""
    if config.lookahead is None:
        return {}
    among = {"greedy": everything} if config.foresight_rounds is None else {"switching": constant, "greedy": everything}
    found: dict[str, list[Score]] = {name: [] for name in among}
    for name, table in among.items():
        for k, episode in enumerate(episodes):
            ranked = sorted(table, key=lambda spec, table=table, k=k: table[spec][k])[: config.candidates]
            found[name].append(greedy_score(suite, episode, ranked, ranked[0], config.lookahead))
    return found


def _levers(
    fixed: Tuned, foreseen: Mapping[str, Tuned], schedules: Mapping[str, Sequence[Score]]
) -> dict[str, dict[str, Any]]:
    """What each lever alone could gain on static-tuned: J, the gain as a share, and the settings by workload.

    Not to use a lever is a use of it, so no gain is below 0; `both` includes either.
    """
    tuned, found = np.array(fixed.least()), {}
    for name, one in foreseen.items():
        within = foreseen.values() if name == "both" else (one,)
        found[name] = (np.min([tuned, *(part.least() for part in within)], axis=0), one.by_episode())
    if "switching" in schedules:
        found["switching"] = (np.minimum(tuned, [s.J for s in schedules["switching"]]), [])
    return {
        name: {"J": float(J.mean()), "gain": float(1 - J.mean() / tuned.mean()), "settings": settings}
        for name, (J, settings) in found.items()
    }


def _js(outcomes: Sequence[Outcome]) -> list[float]:
    return [outcome.score.J for outcome in outcomes]


def mean_score(scores: Sequence[Score]) -> dict[str, float]:
    """Means of J and its parts under the names of `evaluate --json`."""
    parts = {"J": "J", "latency": "latency", "memory": "memory", "fidelity": "fidelity"}
    return {name: float(np.mean([getattr(s, part) for s in scores])) for name, part in parts.items()}
