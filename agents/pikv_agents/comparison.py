"""Local runs and evaluations as one object: J by policy, paired differences, training by group."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pikv_agents.report.schema import Evaluation, check_evaluation
from pikv_agents.report.verdict import role
from pikv_agents.statistics import (
    Interval,
    bootstrap_interval,
    iqm,
    paired_difference,
    probability_of_improvement,
)
from pikv_agents.tracking.metrics import METRICS_FILE, read_metrics, read_run

# policy -> family -> unit (workload seed or file number) -> J
Samples = dict[str, dict[str, dict[int, float]]]


def find_sources(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(run folders, evaluation files) below `paths`, each once; ValueError where a path holds neither."""
    runs: list[Path] = []
    evaluations: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if path.is_dir():
            found = (
                [p.parent for p in sorted(path.rglob(METRICS_FILE))],
                sorted(path.rglob("evaluation*.json")),
            )
        else:
            found = ([path.parent], []) if path.name == METRICS_FILE else ([], [path])
        if not any(found):
            raise ValueError(f"{path} holds neither {METRICS_FILE} nor evaluation*.json")
        runs += found[0]
        evaluations += found[1]
    return list(dict.fromkeys(runs)), list(dict.fromkeys(evaluations))


def load_evaluation(path: Path) -> Evaluation:
    """Read and check one `evaluate --json` object; errors name the file."""
    try:
        return check_evaluation(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _choose_unit(unit: str, evaluations: Sequence[Evaluation]) -> str:
    if unit != "auto":
        return unit
    names = [set(evaluation["iqm"]) for evaluation in evaluations]
    if len(names) > 1 and all(one == names[0] for one in names):
        return "run"
    rows = [row for e in evaluations for f in e["families"].values() for row in f["policies"].values()]
    return "workload" if all(len(row.get("scores", [])) == len(evaluations[0]["seeds"]) for row in rows) else "run"


def collect(evaluations: Sequence[Evaluation], split: str, unit: str) -> Samples:
    """J by policy, family and unit; a workload seed found in several files is averaged over them."""
    lists: dict[str, dict[str, dict[int, list[float]]]] = {}
    for number, evaluation in enumerate(evaluations):
        for family, block in evaluation["families"].items():
            if split not in ("all", block["split"]):
                continue
            for policy, row in block["policies"].items():
                scores = {number: row["J"]}
                if unit == "workload":
                    scores = _by_seed(evaluation, family, policy)
                units = lists.setdefault(policy, {}).setdefault(family, {})
                for key, value in scores.items():
                    units.setdefault(key, []).append(value)
    if not lists:
        splits = sorted({f["split"] for e in evaluations for f in e["families"].values()})
        raise ValueError(f"split={split!r} has no family in these evaluations: allowed {', '.join(splits)}, all")
    return {
        policy: {family: {key: float(np.mean(v)) for key, v in units.items()} for family, units in rows.items()}
        for policy, rows in lists.items()
    }


def _by_seed(evaluation: Evaluation, family: str, policy: str) -> dict[int, float]:
    scores = evaluation["families"][family]["policies"][policy].get("scores", [])
    seeds = evaluation["seeds"]
    if len(scores) != len(seeds):
        raise ValueError(
            f"unit='workload': {policy!r} on {family!r} has {len(scores)} scores, need {len(seeds)}; or run"
        )
    return dict(zip(seeds, scores, strict=True))


def _table(samples: Samples, policy: str, families: Sequence[str]) -> list[list[float]]:
    return [list(samples[policy][family].values()) for family in families]


def _ci(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _policy(samples: Samples, policy: str, families: Sequence[str]) -> dict[str, Any]:
    table = _table(samples, policy, families)
    enough = min(len(row) for row in table) >= 2
    return {
        "J": iqm(table),
        "ci95": _ci(bootstrap_interval(table)) if enough else None,
        "scores": sum(len(row) for row in table),
        "families": {family: float(np.mean(row)) for family, row in zip(families, table, strict=True)},
    }


def _difference(samples: Samples, policy: str, baseline: str, families: Sequence[str]) -> dict[str, Any] | None:
    """Paired on the units that both have; None where a family has fewer than two of them."""
    pairs = []
    for family in families:
        first, second = samples[policy][family], samples[baseline][family]
        pairs.append([(first[key], second[key]) for key in first if key in second])
    if min(len(rows) for rows in pairs) < 2:
        return None
    mine, theirs = ([[pair[side] for pair in rows] for rows in pairs] for side in (0, 1))
    found = paired_difference(mine, theirs)
    chance = probability_of_improvement(mine, theirs)
    by_family = {family: paired_difference(mine[i], theirs[i]) for i, family in enumerate(families)}
    return {
        "difference": found.value,
        "ci95": _ci(found),
        "relative": found.value / float(np.mean(np.concatenate(theirs))),
        "probability_of_improvement": chance.value,
        "probability_ci95": _ci(chance),
        "families": {f: {"difference": d.value, "ci95": _ci(d)} for f, d in by_family.items()},
    }


def _choose_baseline(evaluations: Sequence[Evaluation], given: str | None, policies: dict[str, Any]) -> str:
    if given is not None and given not in policies:
        raise ValueError(f"baseline {given!r} is not evaluated: allowed {', '.join(sorted(policies))}")
    rivals = [p for p in policies if all(role(e, p) == "heuristic" for e in evaluations)] or list(policies)
    return given or min(rivals, key=lambda policy: policies[policy]["J"])


def _training(runs: Sequence[Path], metric: str) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    for folder in runs:
        series = read_metrics(folder)
        if metric not in series:
            raise ValueError(f"{folder} has no metric {metric!r}: allowed {', '.join(sorted(series))}")
        steps, values = (np.array(series[metric][key]) for key in ("step", "value"))
        last = values[steps >= steps[-1] - 0.1 * (steps[-1] - steps[0])]
        group = groups.setdefault(read_run(folder)["group"], {"runs": [], "final": [], "curves": []})
        group["runs"].append(folder.name)
        group["final"].append(float(last.mean()))
        group["curves"].append(series[metric])
    for group in groups.values():
        group["iqm"] = iqm(group["final"])
        group["ci95"] = _ci(bootstrap_interval(group["final"])) if len(group["final"]) > 1 else None
    return {"metric": metric, "groups": groups}


def compare(
    paths: Sequence[Path],
    baseline: str | None = None,
    split: str = "test",
    unit: str = "auto",
    metric: str = "charts/episode_return",
) -> dict[str, Any]:
    """All that lies below `paths` as one object; `evaluation` or `training` is None where there is none."""
    if not paths:
        raise ValueError("no paths given: name run folders or evaluation JSON files")
    runs, files = find_sources(paths)
    result: dict[str, Any] = {"sources": [str(path) for path in (*runs, *files)], "evaluation": None}
    result["training"] = _training(runs, metric) if runs else None
    if files:
        result["evaluation"] = _evaluation([load_evaluation(path) for path in files], baseline, split, unit)
    return result


def _evaluation(evaluations: Sequence[Evaluation], baseline: str | None, split: str, unit: str) -> dict[str, Any]:
    unit = _choose_unit(unit, evaluations)
    samples = collect(evaluations, split, unit)
    families = [f for f in next(iter(samples.values())) if all(f in rows for rows in samples.values())]
    if not families:
        raise ValueError(f"no family is evaluated for all of {', '.join(samples)}: nothing to compare")
    policies = {policy: _policy(samples, policy, families) for policy in samples}
    chosen = _choose_baseline(evaluations, baseline, policies)
    return {
        "unit": unit,
        "split": split,
        "families": families,
        "baseline": chosen,
        "policies": policies,
        "differences": {p: _difference(samples, p, chosen, families) for p in samples if p != chosen},
    }
