"""What every column of the contract is worth: `benchmarks/contract-evidence.json`.

    python benchmarks/contract_evidence.py [--suite NAME] [--families NAME ...] [--pressures P ...] [--horizon-s S]

Controls: around a fixed setting of a cell (a family at a pressure), every action of the `coef` view is moved alone over
its range. `reach` is the largest relative change of J that it makes anywhere, `gain` what it improves J by in the best
case and on average, `adaptive` what choosing it for each cell improves on choosing it once for all. Cells of kind
`best` start from the best of a few settings; it has every page at the lowest rung, where no order of pages means
anything. Cells of kind `ordered` start from a setting that compresses, evicts and reads in part.

Features: policies that differ much are played, and every decision's telemetry and the charge of the following
intervals kept. `explained` is the share of a feature's variance that a linear function of the other features of its
kind explains; `worth` is how much of a prediction of the future charge (ridge over features and their squares, fitted
on one workload of a family, tested on another) is lost where the feature is shuffled.

Cells that the file holds are not measured again; `--families` and `--pressures` add cells.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from contract_tables import VALUES, controls
from numpy.typing import NDArray

from pikv_agents.commands.options import default_threads, open_library, origin
from pikv_agents.rollout import Episode, Job, Suite, run_jobs
from pikv_agents.tracking.metrics import write_json
from pikv_env.suites import SUITES
from pikv_runtime.contract import GLOBAL_FEATURES, GROUP_FEATURES, Control, Telemetry
from pikv_runtime.controllers import make_policy
from pikv_runtime.policy import Policy
from pikv_runtime.views.coef import CoefView

FAMILIES = ("chat-diurnal", "agent-loops", "rag-tenants", "code-bursty", "facts-poisson", "chat-swing")
PRESSURES = (1.0, 2.0)
BASES = (
    "static:ratio=2,demote=true,r_pressure=4/h2o",
    "static:ratio=3.4,demote=true,r_pressure=4/h2o",
    "static:ratio=2,cached_ratio=2,demote=true,r_pressure=4/h2o",
    "static:ratio=3.4,cached_ratio=3.4,demote=true,r_pressure=4/h2o",
    "static:ratio=2,fan_out=0.5,demote=true,r_pressure=4/h2o",
    "static:ratio=3.4,cached_ratio=3.4,fan_out=0.5,demote=true,r_pressure=4/h2o",
)
ORDERED = ("static:ratio=2,evict=0.05,fan_out=0.3,cached_ratio=2,demote=true,r_pressure=4/h2o",)
KINDS = {"best": BASES, "ordered": ORDERED}
VARIED = ("capped_exact/lru", "lazy/h2o", "load_proportional/h2o", "pressure_proportional/lru", "random/h2o")
AHEAD = 60  # intervals of future charge
RIDGE = 1e-2
VIEW = CoefView()
Floats = NDArray[np.float64]


@dataclass
class Fixed:
    """One action of the `coef` view for ever."""

    action: NDArray[np.float32]
    name: str = "fixed"

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        out = out if out is not None else Control.zeros(len(telemetry.groups))
        VIEW.decode(
            self.action[None], telemetry.groups[None], telemetry.globals[None], out.groups[None], out.globals[None]
        )
        return out


@dataclass
class Watched:
    """A policy whose telemetry is kept."""

    policy: Policy
    seen: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=list)
    name: str = "watched"

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        self.seen.append((telemetry.groups.copy(), telemetry.globals.copy()))
        return self.policy.decide(telemetry, out)


def sweep(suite: Suite, family: str, pressure: float, kind: str) -> dict[str, Any]:
    """J of one cell by action and value, and of the setting that it starts from."""
    episodes = [Episode(family, 0, pressure)]
    bases = suite.run_all({spec: spec for spec in KINDS[kind]}, episodes)
    best = min(KINDS[kind], key=lambda spec: bases[spec][0].score.J)
    control = make_policy(best).decide(Telemetry.zeros(1))
    start = VIEW.encode(control.groups[None], control.globals[None])[0]
    makers: dict[str, str | Callable[[], Policy]] = {"base": partial(Fixed, start)}
    for column, name in enumerate(VIEW.action_names()):
        for value in VALUES:
            action = start.copy()
            action[column] = value
            makers[f"{name}={value:g}"] = partial(Fixed, action)
    played = suite.run_all(makers, episodes)
    costs = {name: outcomes[0].score.J for name, outcomes in played.items()}
    reached = bases[best][0].counters["pressure_reached"]
    cell = {"family": family, "pressure": pressure, "kind": kind, "pressure_reached": reached, "base": best}
    return cell | {"J": costs}


def watch(suite: Suite, family: str, pressure: float, base: str) -> tuple[Floats, Floats, Floats, Floats]:
    """Telemetry and future charge of varied policies in one cell.

    Returns:
        Group features (S, N, F_group), global features (S, F_global), log1p of the mean charge of the next `AHEAD`
        intervals relative to the cell's mean charge (S,), and the number of the workload (S,).
    """
    parts = []
    for seed in (0, 1):
        watched = [Watched(make_policy(spec)) for spec in dict.fromkeys((base, *VARIED))]
        charges: list[Floats] = []
        batch = suite.batch(family, seed, len(watched))
        run_jobs(batch, [Job(policy, 0, pressure) for policy in watched], suite.lambdas, watch=partial(_keep, charges))
        batch.close()
        parts += [(w, np.array(charges)[: len(w.seen), i], seed) for i, w in enumerate(watched)]
    mean = np.mean(np.concatenate([charge for _, charge, _ in parts]))
    groups, globals_, targets, seeds = [], [], [], []
    for w, charge, seed in parts:
        total = np.concatenate([[0.0], np.cumsum(charge)])
        for t in range(len(charge) - AHEAD):
            groups.append(w.seen[t][0])
            globals_.append(w.seen[t][1])
            targets.append(np.log1p((total[t + AHEAD] - total[t]) / AHEAD / mean))
            seeds.append(seed)
    return np.array(groups, np.float64), np.array(globals_, np.float64), np.array(targets), np.array(seeds)


def _keep(charges: list[Floats], job: int, running: list[int], rewards: Floats) -> None:
    charges.append(-rewards.copy())


def explained(values: Floats) -> Floats:
    """Share of each column's variance that the other columns explain linearly; NaN for constant ones."""
    spread = values.std(axis=0)
    live = np.flatnonzero(spread > 1e-7)
    z = (values[:, live] - values[:, live].mean(axis=0)) / spread[live]
    precision = np.linalg.inv(z.T @ z / len(z) + 1e-9 * np.eye(len(live)))
    found = np.full(values.shape[1], np.nan)
    found[live] = 1 - 1 / np.diag(precision)
    return found


def _worth(columns: Floats, target: Floats, train: NDArray[np.bool_], owner: NDArray[np.intp]) -> Floats:
    """R² lost on the test workload when all columns of one owner are shuffled together, (owners,)."""
    rng = np.random.default_rng(0)
    wide = np.concatenate([columns, columns**2], axis=1)
    mean, spread = wide[train].mean(axis=0), wide[train].std(axis=0) + 1e-9
    z = np.clip((wide - mean) / spread, -6, 6)
    z = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    gram = z[train].T @ z[train] / train.sum() + RIDGE * np.eye(z.shape[1])
    weights = np.linalg.solve(gram, z[train].T @ target[train] / train.sum())
    test, truth = z[~train], target[~train]
    error = np.mean((test @ weights - truth) ** 2)
    lost = np.zeros(owner.max() + 1)
    both = np.concatenate([owner, owner])
    for one in range(len(lost)):
        shuffled = test.copy()
        own = np.flatnonzero(both == one)
        shuffled[:, own] = test[rng.permutation(len(test))][:, own]
        lost[one] = (np.mean((shuffled @ weights - truth) ** 2) - error) / np.var(truth)
    return lost


def features(parts: list[tuple[Floats, Floats, Floats, Floats]]) -> list[dict[str, Any]]:
    """What every feature is worth over the cells."""
    groups, globals_, target, seed = (np.concatenate([p[k] for p in parts]) for k in range(4))
    pooled = np.concatenate([groups.mean(axis=1), groups.max(axis=1)], axis=1)
    count, wide = len(GROUP_FEATURES), len(GLOBAL_FEATURES)
    owner = np.concatenate([np.arange(count), np.arange(count), count + np.arange(wide)])
    lost = _worth(np.concatenate([pooled, globals_], axis=1), target, seed == 0, owner)
    flat = groups.reshape(-1, count)
    known = np.concatenate([explained(flat), explained(globals_)])
    rows = []
    for k, column in enumerate((*GROUP_FEATURES, *GLOBAL_FEATURES)):
        values = flat[:, k] if k < count else globals_[:, k - count]
        low, high = np.percentile(values, [1, 99])
        rows.append(
            {
                "feature": column.name,
                "kind": "group" if k < count else "global",
                "low": float(low),
                "high": float(high),
                "explained": None if np.isnan(known[k]) else float(known[k]),
                "worth": float(lost[k]),
            }
        )
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="serving", choices=list(SUITES))
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--pressures", nargs="+", type=float, default=PRESSURES)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--horizon-s", type=float, default=900.0)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("contract-evidence.json"))
    given = parser.parse_args()
    config = SUITES[given.suite].config(workloads=1, horizon_s=given.horizon_s)
    suite = Suite(open_library(None), config, default_threads())
    cells = json.loads(given.json.read_text())["cells"] if given.json.exists() else []
    command = f"python benchmarks/contract_evidence.py --suite {given.suite} --horizon-s {given.horizon_s:g}"
    known = {(cell["family"], cell["pressure"], cell["kind"]) for cell in cells}
    for cell in itertools.product(given.families, given.pressures, given.kinds):
        if cell not in known:
            cells.append(sweep(suite, *cell))
            print("{family} at {pressure:g}, {kind}: J {0:.3f}".format(cells[-1]["J"]["base"], **cells[-1]), flush=True)
            write_json(
                given.json,
                {"controls": controls(cells, VIEW.action_names()), "features": [], "cells": cells, "meta": origin()},
            )
    parts = [watch(suite, cell["family"], cell["pressure"], cell["base"]) for cell in cells if cell["kind"] == "best"]
    result = {"controls": controls(cells, VIEW.action_names()), "features": features(parts), "cells": cells}
    write_json(given.json, result | {"meta": origin() | {"command": command, "horizon_s": given.horizon_s}})
    for row in result["controls"]:
        print(
            "{control:<36} reach {reach:6.3f} gain {gain_mean:6.3f} / {gain_best:6.3f} adaptive {adaptive:6.3f}".format(
                **row
            )
        )
    for row in result["features"]:
        print("{feature:<24} {low:7.3f} {high:7.3f} explained {explained} worth {worth:.4f}".format(**row))


if __name__ == "__main__":
    main()
