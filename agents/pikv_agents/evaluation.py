"""`evaluate`: policies on workloads, as the object that `evaluate --json` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pikv_agents.headroom_config import CAPPED
from pikv_agents.report.verdict import counted_families
from pikv_agents.rollout import Episode, Outcome, Suite, mean_costs, reaching
from pikv_agents.seen import Seen, check_split
from pikv_agents.static_grid import STATIC_GRID, best_static
from pikv_agents.statistics import bootstrap_interval, iqm
from pikv_env.workloads.families import Split
from pikv_runtime.controllers import is_spec
from pikv_runtime.policy import Policy, load_bundle, load_policy

PolicyLike = str | Policy | Callable[[], Policy]
"""A heuristic's spec, a bundle's folder, a policy without state between episodes, or a maker of fresh ones."""

RIVALS: dict[str, str] = {
    "capped_exact": CAPPED,
    "lazy/lru": "lazy/lru",
    "lazy/h2o": "lazy/h2o",
    "lazy/streaming_llm": "lazy/streaming_llm",
    "pressure_proportional/lru": "pressure_proportional/lru",
    "pressure_proportional/h2o": "pressure_proportional/h2o",
    "pressure_proportional/streaming_llm": "pressure_proportional/streaming_llm",
    "load_proportional/h2o": "load_proportional/h2o",
    "static_ladder": "static:ratio=2,demote=true,r_pressure=4/h2o",
    "random": "random/lru",
}
"""What a learned policy is compared with, besides static-global and static-tuned."""
Runs = dict[str, list[Outcome]]
ENV_FIELDS = ("profile", "geometry", "token_scale", "ranks", "host", "horizon_s", "drain", "load")
"""What of the environment an evaluation records, so that it can be repeated; the runtime is the default one, but for
`RUNTIME_FIELDS`, which are recorded beside them."""
RUNTIME_FIELDS = ("slots", "max_batch_tokens", "control_latency_s")


def evaluate(
    policies: Mapping[str, PolicyLike],
    suite: Suite,
    families: Sequence[str],
    seeds: Sequence[int] = tuple(range(10)),
    pressures: Sequence[float] = (2.0,),
    *,
    rivals: Mapping[str, str] | None = None,
    grid: Sequence[str] = STATIC_GRID,
    training: Sequence[str] | None = None,
    headroom: Mapping[str, Any] | None = None,
    seen: Sequence[str] = (),
    split: Split | None = None,
    runner: str = "native",
    meta: Mapping[str, Any] | None = None,
    name: str = "PiKV/Trace-v0",
) -> dict[str, Any]:
    """Play every policy on every family, workload seed and pressure.

    Args:
        policies: By name; names that start with "learned" are learned policies to the report.
        suite: Workloads; what it remembers of heuristics is not played again.
        families: Workload families.
        seeds: Workloads of every family.
        pressures: With more than one, rows are named family@pressure.
        rivals: Heuristics to compare with; `RIVALS` if not given.
        grid: Static settings; empty: no static rivals.
        training: Families over which static-global is chosen; by default the environment's.
        headroom: Result of `headroom`: gives static-global, and the families' headroom and feasible schedule.
        seen: Families that some policy saw in training, besides those that bundles name themselves.
        split: All families must be of this split; with "test", none may have been seen.
        runner: Of bundles.
        meta: Added to the result's `meta`.
        name: Of the suite, for the result's `suite`.

    Raises:
        ValueError: A family of the test split was seen in training (under this name or another), a family is not
            of `split`, or no policy is given.
    """
    for policy in policies.values():
        if isinstance(policy, str):
            load_policy(policy, "numpy", guard=False)  # a misspelt heuristic gets the closest name
    known = Seen.by(bundles(policies), seen)
    check_split(families, known, split)
    chosen: dict[str, PolicyLike] = {**(RIVALS if rivals is None else rivals)}
    if grid:
        chosen["static_global"] = _static_global(suite, grid, training, headroom, seeds, pressures)
    for start in starts(policies):
        if start not in chosen.values():
            chosen[start] = start  # whoever learned nothing must not beat what it started from
    chosen |= policies
    if not chosen:
        raise ValueError("nothing to evaluate: give policies or rivals")
    makers = {label: _maker(policy, runner) for label, policy in chosen.items()}
    rows, tables = {}, {}
    for family in families:
        for pressure in pressures:
            label = family if len(pressures) == 1 else f"{family}@{pressure:g}"
            episodes = [Episode(family, seed, pressure) for seed in seeds]
            runs = suite.run_all(makers, episodes) | _static_tuned(suite, grid, episodes)
            tables[label] = {p: [o.score.J for o in outcomes] for p, outcomes in runs.items()}
            rows[label] = _family(family, known, pressure, runs, headroom)
    counted = counted_families({"families": rows})  # type: ignore[typeddict-item]
    return {
        "suite": name,
        "lambda1": suite.lambdas[0],
        "lambda2": suite.lambdas[1],
        "seeds": list(seeds),
        "families": rows,
        "iqm": _overall({label: tables[label] for label in counted}),
        "by_pressure": _by_pressure(rows, tables) if len(pressures) > 1 else None,
        "oracle": _oracle(headroom),
        "roles": {label: "learned" for label in policies if _is_learned(policies[label])},
        "meta": {
            "policies": {k: v for k, v in chosen.items() if isinstance(v, str)},
            **priced(suite),
            **(meta or {}),
        },
    }


def priced(suite: Suite) -> dict[str, Any]:
    """What the environment of a suite is, for `meta`; `what_if` where the priced model is not the recorded one."""
    from pikv_env.pool import folding_of

    folding = folding_of(suite.library, suite.config)
    told = {"what_if": folding.label()} if folding.what_if else {}
    env = {name: getattr(suite.config, name) for name in ENV_FIELDS}
    runtime = {name: getattr(suite.config.runtime, name) for name in RUNTIME_FIELDS}
    return {"env": {**env, "runtime": runtime}, **told}


def starts(policies: Mapping[str, PolicyLike]) -> list[str]:
    """Heuristics that the bundles among `policies` were trained from."""
    told = [load_bundle(path).manifest.provenance for path in bundles(policies)]
    return [start for provenance in told if (start := provenance.get("start"))]


def bundles(policies: Mapping[str, PolicyLike]) -> list[str]:
    """Folders of the bundles among `policies`."""
    return [p for p in policies.values() if isinstance(p, str) and not is_spec(p)]


def _is_learned(policy: PolicyLike) -> bool:
    return not (isinstance(policy, str) and is_spec(policy))


def _maker(policy: PolicyLike, runner: str) -> str | Callable[[], Policy]:
    """A heuristic's full spec (which a suite remembers), or a maker of policies."""
    if isinstance(policy, str):
        if is_spec(policy):
            return policy
        loaded = load_policy(policy, runner=runner, guard=False)  # the guard would hide what the policy itself does
        return lambda: loaded
    if isinstance(policy, Policy):
        return lambda: policy
    return policy


def _static_global(
    suite: Suite,
    grid: Sequence[str],
    training: Sequence[str] | None,
    headroom: Mapping[str, Any] | None,
    seeds: Sequence[int],
    pressures: Sequence[float],
) -> str:
    if headroom is not None:
        return headroom["static_global"]
    families = training or suite.config.families
    return best_static(suite, grid, [Episode(f, s, p) for f in families for s in seeds for p in pressures])


def _static_tuned(suite: Suite, grid: Sequence[str], episodes: Sequence[Episode]) -> Runs:
    """The best setting in hindsight, workload by workload."""
    if not grid:
        return {}
    runs = suite.run_all({spec: spec for spec in grid}, episodes)
    return {"static_tuned": [min(column, key=lambda o: o.score.J) for column in zip(*runs.values(), strict=True)]}


def _family(family: str, seen: Seen, pressure: float, runs: Runs, headroom: Mapping[str, Any] | None) -> dict[str, Any]:
    known = [r for r in (headroom or {}).get("rows", ()) if (r["family"], r["pressure"]) == (family, pressure)]
    return {
        "family": family,
        "split": seen.split(family),
        "near_copy_of": seen.near(family),
        **reaching(pressure, next(iter(runs.values()))),
        "headroom": known[0]["headroom"] if known else None,
        "policies": {policy: _costs(outcomes) for policy, outcomes in runs.items()},
    }


def _costs(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    scores = [o.score.J for o in outcomes]
    counters = {name: float(np.mean([o.counters[name] for o in outcomes])) for name in outcomes[0].counters}
    return mean_costs(outcomes) | {
        "worst_request": max(o.worst_request for o in outcomes),
        "ci95": _ci(scores, "mean"),
        "scores": scores,
        "counters": counters,
    }


def _ci(scores: Any, statistic: str) -> list[float] | None:
    """Bootstrap interval; None where a stratum has a single run."""
    table = scores if np.ndim(scores[0]) else [scores]
    if min(len(row) for row in table) < 2:
        return None
    found = bootstrap_interval(table, statistic)  # type: ignore[arg-type]
    return [found.low, found.high]


def _overall(tables: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """IQM over the counted families and all seeds. Gaps need the relaxation's bound and stay open without one."""
    policies = next(iter(tables.values()))
    rows: dict[str, Any] = {}
    for policy in policies:
        table = [scores[policy] for scores in tables.values()]
        rows[policy] = {
            "J": iqm(table),
            "ci95": _ci(table, "iqm"),
            "gap_closed_static_global": None,
            "gap_closed_static_tuned": None,
        }
    return rows


def _by_pressure(rows: Mapping[str, Any], tables: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """The IQM at each pressure over the held-out families that reach it; the others are named."""
    found: dict[str, Any] = {}
    for pressure in dict.fromkeys(row["pressure"] for row in rows.values()):
        held = {label: row for label, row in rows.items() if (row["pressure"], row["split"]) == (pressure, "test")}
        there = {label: tables[label] for label, row in held.items() if row["reached"]}
        found[f"{pressure:g}"] = {
            "families": [held[label]["family"] for label in there],
            "missed": [row["family"] for row in held.values() if not row["reached"]],
            "policies": _overall(there) if there else {},
        }
    return found


def _oracle(headroom: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The bracket as far as it is known: J of the feasible schedule by row; no relaxation is computed here."""
    if headroom is None:
        return None
    feasible = {f"{r['family']}@{r['pressure']:g}": float(np.mean(r["feasible"])) for r in headroom["rows"]}
    return {"relaxation": None, "feasible": feasible}
