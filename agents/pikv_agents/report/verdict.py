"""The verdict: does the learned policy beat the best heuristic? Computed from intervals, never written.

Where the scores of both policies by workload are known, the interval is that of their paired difference;
otherwise one wins only if the two intervals do not touch. Only held-out families with at least 10 % headroom, at a
pressure that they reach, count; the others are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pikv_agents.report.schema import Evaluation, PolicyCosts, PolicyIqm, Role
from pikv_agents.statistics import iqm, paired_difference
from pikv_env.suites import reached

Outcome = Literal["wins", "ties", "loses"]
Row = PolicyCosts | PolicyIqm
LEAST_HEADROOM = 0.10
MOST_REGRESSION = 0.02  # promotion gate: no family more than 2 % worse than static_tuned
# Not deployable. All else without learning is a rival, the plain capped cache and static_global included.
REFERENCES = ("static_tuned", "belady", "oracle", "feasible", "relaxation")


@dataclass(frozen=True)
class FamilyVerdict:
    """Learned against the family's own best heuristic."""

    family: str
    split: str
    counted: bool
    baseline: str
    outcome: Outcome
    learned_J: float
    baseline_J: float
    versus_static_tuned: float | None
    """Relative difference of J to static_tuned, where that was evaluated."""

    @property
    def relative(self) -> float:
        """Relative difference of J: below zero means that the learned policy costs less."""
        return self.learned_J / self.baseline_J - 1


@dataclass(frozen=True)
class Verdict:
    """The outcome over all counted families, in data and in one sentence."""

    outcome: Outcome
    learned: str
    baseline: str
    relative: float
    sentence: str
    families: tuple[FamilyVerdict, ...]
    gate_failures: tuple[str, ...]
    """Families where the learned policy is over 2 % worse than static_tuned."""

    @property
    def promoted(self) -> bool:
        """Whether the promotion gate is passed: wins, and no family is much worse than static_tuned."""
        known = all(row.versus_static_tuned is not None for row in self.families)
        return self.outcome == "wins" and known and not self.gate_failures


def role(evaluation: Evaluation, policy: str) -> Role:
    """The policy's role: as the evaluation says, or by its name."""
    given = evaluation.get("roles", {}).get(policy)
    if given:
        return given
    if policy.startswith("learned"):
        return "learned"
    return "reference" if policy in REFERENCES else "heuristic"


@dataclass(frozen=True)
class Counting:
    """Which families an evaluation is judged by, and why these."""

    families: tuple[str, ...]
    rule: str
    """What is true of them, in words."""


def met(row: Mapping[str, Any]) -> bool:
    """Whether a row's pressure was reached; rows that do not tell are taken at their word."""
    asked, got = row.get("pressure"), row.get("pressure_reached")
    return asked is None or got is None or reached(asked, got)


def counting(evaluation: Evaluation) -> Counting:
    """Held-out families at a pressure that was reached, with enough headroom; where there is none, the next best."""
    families = evaluation["families"]
    held_out = [name for name, row in families.items() if row["split"] == "test"]
    there = [name for name in held_out if met(families[name])]
    enough = [name for name in there if (families[name].get("headroom") or 0) >= LEAST_HEADROOM]
    if enough:
        return Counting(
            tuple(enough),
            f"a family counts if it was held out from training, reaches its pressure and has at least "
            f"{LEAST_HEADROOM:.0%} headroom",
        )
    if there:
        known = any(families[name].get("headroom") is not None for name in there)
        why = f"none of them has {LEAST_HEADROOM:.0%} headroom" if known else "their headroom is not known here"
        return Counting(tuple(there), f"these were held out from training and reach their pressure; {why}")
    if held_out:
        return Counting(tuple(held_out), "these were held out from training; none reaches its pressure")
    return Counting(tuple(families), "no family here was held out from training, so all are shown: this is no test")


def counted_families(evaluation: Evaluation) -> list[str]:
    """The families of `counting`."""
    return list(counting(evaluation).families)


def judge(learned: Row, baseline: Row) -> Outcome:
    """Outcome on one row: by the paired difference where both have scores, else by apart intervals."""
    first, second = learned.get("scores", []), baseline.get("scores", [])
    if len(first) == len(second) >= 2:
        found = paired_difference(first, second)
        return _sign(found.low, found.high)
    one, two = learned.get("ci95"), baseline.get("ci95")
    if not one or not two:
        return "ties"  # without an interval no difference may be claimed
    return _sign(one[0] - two[1], one[1] - two[0])


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, and a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _sign(low: float, high: float) -> Outcome:
    return "wins" if high < 0 else "loses" if low > 0 else "ties"


def _family(evaluation: Evaluation, name: str, learned: str, counted: list[str]) -> FamilyVerdict | None:
    row = evaluation["families"][name]
    policies = row["policies"]
    rivals = [p for p in policies if role(evaluation, p) == "heuristic"]
    if learned not in policies or not rivals:
        return None
    best = min(rivals, key=lambda p: policies[p]["J"])
    tuned = policies.get("static_tuned")
    mine = policies[learned]
    return FamilyVerdict(
        family=name,
        split=row["split"],
        counted=name in counted,
        baseline=best,
        outcome=judge(mine, policies[best]),
        learned_J=mine["J"],
        baseline_J=policies[best]["J"],
        versus_static_tuned=mine["J"] / tuned["J"] - 1 if tuned else None,
    )


def _overall(evaluation: Evaluation, learned: str, best: str, counted: list[str]) -> tuple[Outcome, float, str]:
    """Outcome over the counted families, relative difference of J, the interval they rest on in words."""
    rows = [evaluation["families"][f]["policies"] for f in counted]
    tables = [[row.get(p, {}).get("scores", []) for row in rows] for p in (learned, best)]
    if all(len(a) == len(b) >= 2 for a, b in zip(*tables, strict=True)):
        # The statistic by which the rival was chosen: with means, two overloaded workloads would decide.
        found = paired_difference(*tables, statistic="iqm")
        words = f"95% interval of the paired difference's IQM {signed(found.low)} to {signed(found.high)}"
        relative = found.value / iqm(tables[1])
        return _sign(found.low, found.high), relative, words
    mine, theirs = evaluation["iqm"][learned], evaluation["iqm"][best]
    relative = mine["J"] / theirs["J"] - 1
    if not mine.get("ci95") or not theirs.get("ci95"):
        return "ties", relative, "no interval was computed, so no difference may be claimed"
    spans = [f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}" for row in (mine, theirs)]
    return judge(mine, theirs), relative, f"95% intervals {spans[0]} and {spans[1]}"


def _sentence(outcome: Outcome, best: str, relative: float, interval: str, families: int) -> str:
    over = f"over {families} {'family' if families == 1 else 'families'}; {interval}"
    change = f"{abs(relative):.1%} {'lower' if relative < 0 else 'higher'}"
    if outcome == "wins":
        return f"The learned policy beats the best heuristic, {best}: its J is {change} ({over})."
    if outcome == "loses":
        return f"The learned policy does not beat the best heuristic, {best}: its J is {change} ({over})."
    return (
        f"The learned policy does not beat the best heuristic, {best}: its J is {change}, "
        f"a difference that could be zero ({over})."
    )


def verdict(evaluation: Evaluation, learned: str | None = None) -> Verdict:
    """Judge `learned` (by default the policy of that role) against the heuristics of `evaluation`."""
    overall = evaluation["iqm"]
    learned = learned or next((p for p in overall if role(evaluation, p) == "learned"), None)
    if learned not in overall:
        raise ValueError(f"learned policy {learned!r} is not evaluated: allowed {', '.join(overall)}")
    rivals = [p for p in overall if role(evaluation, p) == "heuristic"]
    if not rivals:
        raise ValueError(f"no heuristic among {', '.join(overall)}: the verdict needs at least one")
    best = min(rivals, key=lambda p: overall[p]["J"])
    counted = counted_families(evaluation)
    outcome, relative, interval = _overall(evaluation, learned, best, counted)
    families = tuple(row for name in evaluation["families"] if (row := _family(evaluation, name, learned, counted)))
    failures = tuple(r.family for r in families if (r.versus_static_tuned or 0) > MOST_REGRESSION)
    sentence = _sentence(outcome, best, relative, interval, len(counted))
    return Verdict(outcome, learned, best, relative, sentence, families, failures)
