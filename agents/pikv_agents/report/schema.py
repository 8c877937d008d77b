"""What `summary.json` holds. Every section but `meta` may be absent; the report leaves it out then.

J, latency, memory and fidelity are the objective's parts as `evaluate` gives them: latency is L / L_U, memory
M, fidelity F, so J = latency + lambda1 · memory + lambda2 · (1 − fidelity). Less J is better.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

Number = Annotated[float, Field(allow_inf_nan=False)]
Span = tuple[Number, Number]
Role = Literal["learned", "heuristic", "reference"]
"""heuristic: whatever one could deploy without learning; reference: tuned in hindsight, or a bound."""


class Stage(TypedDict):
    """One stage of the run that made the summary."""

    stage: str
    seconds: Number


class Meta(TypedDict):
    """Where the numbers come from."""

    date: str
    commit: str
    machine: str
    versions: dict[str, str]
    stages: list[Stage]
    title: NotRequired[str]
    command: NotRequired[str]


class CoverageRow(TypedDict):
    """Share of far attention mass on a router's pages, in one layer at one budget (share of pages)."""

    layer: int
    budget: Number
    gate: Number
    centroid: Number
    random: Number
    best: Number


class Costs(TypedDict):
    """One policy's cost on one family."""

    J: Number
    latency: Number
    memory: Number
    fidelity: Number


class HeadroomRow(TypedDict):
    """One family before any learning: capped_exact, static_global, static_tuned, best_heuristic, greedy."""

    family: str
    split: str
    pressure: Number
    pressure_reached: NotRequired[Number]
    reached: NotRequired[bool]
    policies: dict[str, Costs]
    headroom: Number
    levers: NotRequired[dict[str, dict[str, Any]]]
    oracle: NotRequired[dict[str, Any]]


class CurvePoint(TypedDict):
    """Training progress; `eval_J` where an evaluation ran."""

    step: int
    episode_return: Number
    eval_J: NotRequired[Number | None]


class Training(TypedDict):
    """One training run."""

    curve: list[CurvePoint]
    seconds: Number
    steps_per_second: Number


class PolicyCosts(Costs):
    """One policy on one family; `scores` is J by workload seed, in the order of the evaluation's `seeds`."""

    worst_request: NotRequired[Number | None]
    ci95: NotRequired[Span | None]
    scores: NotRequired[list[Number]]


class FamilyEvaluation(TypedDict):
    """All policies on one family."""

    split: str
    pressure: NotRequired[Number | None]
    pressure_reached: NotRequired[Number | None]
    reached: NotRequired[bool | None]
    near_copy_of: NotRequired[str | None]
    headroom: NotRequired[Number | None]
    policies: dict[str, PolicyCosts]


class PolicyIqm(TypedDict):
    """One policy over all counted families."""

    J: Number
    ci95: NotRequired[Span | None]
    gap_closed_static_global: NotRequired[Number | None]
    gap_closed_static_tuned: NotRequired[Number | None]


class PressureIqm(TypedDict):
    """All policies at one pressure, over the held-out families that reach it; `missed`: those that do not."""

    families: list[str]
    missed: list[str]
    policies: dict[str, PolicyIqm]


class Evaluation(TypedDict):
    """The object of `evaluate --json`; `roles` names the policies whose role their name does not tell."""

    suite: NotRequired[str]
    lambda1: Number
    lambda2: Number
    seeds: list[int]
    families: dict[str, FamilyEvaluation]
    iqm: dict[str, PolicyIqm]
    by_pressure: NotRequired[dict[str, PressureIqm] | None]
    oracle: NotRequired[dict[str, Any] | None]
    roles: NotRequired[dict[str, Role]]
    meta: NotRequired[dict[str, Any]]


class Policy(TypedDict):
    """The exported bundle; `decision_us` by runner (native, numpy, sb3_predict)."""

    bundle: str
    golden_pairs: int
    golden_error: Number
    decision_us: dict[str, Number]
    compile_seconds: Number


class LiveRow(Costs):
    """One policy on the live runtime, or the trace environment's prediction of it."""

    policy: str
    where: Literal["trace", "live"]
    tokens_per_second: NotRequired[Number | None]
    decision_us: NotRequired[Number | None]
    controls_identical_on_ranks: NotRequired[bool | None]


class Live(TypedDict):
    """The learned policy and its rivals inside the decode loop."""

    family: str
    ranks: int
    rows: list[LiveRow]


class TimelineRun(TypedDict):
    """One policy over the intervals of one episode; every list has one value per interval.

    `pages`: pages by state (`native`, `bf16`, `int8`, `int4` of live requests, `cached`). `bytes`: the
    same keys as shares of the cap. `evicted`: pages evicted so far. `pressure`: share of the cap.
    `queue`: requests waiting. `controls` in force: mean_ratio, evict_fraction, fan_out, cached_share,
    r_pressure.
    """

    policy: str
    time_s: list[Number]
    pages: dict[str, list[Number]]
    bytes: dict[str, list[Number]]
    evicted: list[Number]
    pressure: list[Number]
    queue: list[Number]
    controls: dict[str, list[Number]]


class Timeline(TypedDict):
    """The same evaluation episode under the learned policy (first) and the best heuristic."""

    family: str
    runs: list[TimelineRun]


class Summary(TypedDict):
    """All of `summary.json`. `verdict`: further remarks; the verdict is computed from `evaluation`."""

    meta: Meta
    coverage: NotRequired[list[CoverageRow]]
    headroom: NotRequired[list[HeadroomRow]]
    training: NotRequired[Training]
    evaluation: NotRequired[Evaluation]
    policy: NotRequired[Policy]
    live: NotRequired[Live]
    timeline: NotRequired[Timeline]
    verdict: NotRequired[list[str]]


def _check(kind: Any, value: Any, what: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "top level"
        raise ValueError(f"{what}, {place}: {first['msg']} (given {str(first['input'])[:60]!r})") from None


def check_summary(value: Any) -> Summary:
    """The summary with checked types; ValueError names the first wrong place. Unknown keys are dropped."""
    summary: Summary = _check(Summary, value, "summary")
    for run in summary.get("timeline", {"runs": []})["runs"]:
        series = {"evicted": run["evicted"], "pressure": run["pressure"], "queue": run["queue"]}
        for name, values in (series | run["pages"] | run["bytes"] | run["controls"]).items():
            if len(values) != len(run["time_s"]):
                raise ValueError(
                    f"summary, timeline of {run['policy']!r}: {name} has {len(values)} values, "
                    f"time_s has {len(run['time_s'])}: they must be equally many"
                )
    return summary


def check_evaluation(value: Any) -> Evaluation:
    """An `evaluate --json` object with checked types; ValueError names the first wrong place."""
    return _check(Evaluation, value, "evaluation")


def load_summary(path: Path | str) -> Summary:
    """Read and check a `summary.json`."""
    return check_summary(json.loads(Path(path).read_text(encoding="utf-8")))
