"""The terms of an environment by name: what is observed, what may be done, what is paid and what is constrained.

Everything is read off the contract, the control views and the configuration; documents and the command print this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pikv_env.config import EnvConfig
from pikv_env.constraints import Constraints
from pikv_runtime.contract import (
    CONTRACT_HASH,
    GLOBAL_CONTROLS,
    GLOBAL_FEATURES,
    GROUP_CONTROLS,
    GROUP_FEATURES,
    Column,
)
from pikv_runtime.control_views import DISCRETE_GRID, VIEWS, make_view, observation_names
from pikv_runtime.objective import OBJECTIVE_VERSION
from pikv_runtime.views.coef import COEF_BASIS, COEF_TERMS

_CONTROLS = {c.name: c for c in (*GROUP_CONTROLS, *GLOBAL_CONTROLS)}


@dataclass(frozen=True)
class Term:
    """One named number: its place, unit, range and meaning."""

    index: int
    name: str
    unit: str
    low: float
    high: float
    meaning: str

    @property
    def range(self) -> str:
        """`low to high`."""
        return f"{self.low:g} to {'∞' if math.isinf(self.high) else f'{self.high:g}'}"


@dataclass(frozen=True)
class Description:
    """All terms of an environment. `str` is a text table; `to_dict` is what `pikv env --json` writes."""

    control: str
    num_groups: int
    observation: tuple[Term, ...]
    action: tuple[Term, ...]
    """What the control view's numbers mean."""
    group_controls: tuple[Term, ...]
    global_controls: tuple[Term, ...]
    """The contract's controls, which actions become."""
    reward: tuple[Term, ...]
    costs: tuple[Term, ...]
    """Empty without constraints."""

    def sections(self) -> dict[str, tuple[Term, ...]]:
        """The tables by title, empty ones left out."""
        controls = {"controls of a group": self.group_controls, "global controls": self.global_controls}
        every = {"observation": self.observation, "action": self.action, **controls}
        every |= {"reward": self.reward, "costs": self.costs}
        return {title: terms for title, terms in every.items() if terms}

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings, lists; an open range ends in None."""
        tables = {title.replace(" ", "_"): [_row(t) for t in terms] for title, terms in self.sections().items()}
        head = {"control": self.control, "num_groups": self.num_groups}
        return {**head, "contract_hash": CONTRACT_HASH, "objective_version": OBJECTIVE_VERSION, **tables}

    def __str__(self) -> str:
        parts = [f"control view {self.control!r}, {self.num_groups} groups, contract {CONTRACT_HASH}"]
        for title, terms in self.sections().items():
            rows = [("#", "name", "unit", "range", "meaning")]
            rows += [(str(t.index), t.name, t.unit, t.range, t.meaning) for t in terms]
            parts += ["", title.upper(), *_aligned(rows)]
        return "\n".join(parts)


def describe(config: EnvConfig, num_groups: int) -> Description:
    """The terms of an environment of `config` with `num_groups` control groups (experts × layer groups).

    Raises:
        UnknownNameError: no such control view.
    """
    return Description(
        control=config.control,
        num_groups=num_groups,
        observation=observation_terms(config.control, num_groups),
        action=action_terms(config.control, num_groups),
        group_controls=_columns(GROUP_CONTROLS),
        global_controls=_columns(GLOBAL_CONTROLS),
        reward=reward_terms(config),
        costs=cost_terms(config),
    )


def observation_terms(control: str, num_groups: int) -> tuple[Term, ...]:
    """Entries of the observation, in order: globals, mean and maximum over groups, then perhaps every group."""
    columns = [(c, c.doc) for c in GLOBAL_FEATURES]
    columns += [(c, f"mean over groups: {c.doc}") for c in GROUP_FEATURES]
    columns += [(c, f"maximum over groups: {c.doc}") for c in GROUP_FEATURES]
    if VIEWS[control].observes_groups:
        columns += [(c, f"group {g}: {c.doc}") for g in range(num_groups) for c in GROUP_FEATURES]
    names = observation_names(num_groups, control)
    rows = enumerate(zip(names, columns, strict=True))
    return tuple(Term(k, name, c.unit, c.low, c.high, meaning) for k, (name, (c, meaning)) in rows)


def action_terms(control: str, num_groups: int) -> tuple[Term, ...]:
    """Entries of the action, in order, and what a view makes of them."""
    names = make_view(control, num_groups).action_names()
    if control == "discrete":
        grid = [values for _, values in DISCRETE_GRID]
        return tuple(
            Term(k, name, "choice", 0, len(values) - 1, _choices(values))
            for k, (name, values) in enumerate(zip(names, grid, strict=True))
        )
    meanings = [_coefficient(n, t) for n, t in _coefficients()] if control == "coef" else []
    meanings += [_scaled(name, coef=control == "coef") for name in names[len(meanings) :]]
    pairs = enumerate(zip(names, meanings, strict=True))
    return tuple(Term(k, name, "scaled", -1, 1, meaning) for k, (name, meaning) in pairs)


def reward_terms(config: EnvConfig) -> tuple[Term, ...]:
    """What the reward of an interval is minus the sum of; each is summed over the interval, then divided."""
    rows = (
        ("latency", "share of L_U", "requests in the system: seconds before the first token × c/SLO_ttft, after it "
         "× c/(SLO_tpot · (out − 1)); over the same sum in U; weight 1"),
        ("memory", "share of cap × U", "resident bytes × seconds, all ranks; over cap of all ranks × duration of U; "
         f"weight λ1 = {_span(config.lambda1)}"),
        ("loss", "share of due weight", "audited tokens and layers: class weight × (missed mass + Σ mass · codec "
         f"error); over the class weights of all that is due; weight λ2 = {_span(config.lambda2)}"),
    )  # fmt: skip
    paid = Constraints(config).rewarded
    kept = [row for row, counts in zip(rows, paid, strict=True) if counts]
    return tuple(Term(k, name, unit, 0, math.inf, meaning) for k, (name, unit, meaning) in enumerate(kept))


def cost_terms(config: EnvConfig) -> tuple[Term, ...]:
    """What `info` says of constraints; sums over an episode compare with the limits named."""
    limits = Constraints(config).limits
    if not limits:
        return ()
    about = {
        "fidelity": ("share of due observations", "lost fidelity", "1 − F"),
        "slo": ("share of requests", "requests known to miss an objective", "the late share"),
    }
    rows = [("cost", "sum of shares", "sum of the costs below; limit 0", math.inf)]
    for name, limit in limits.items():
        unit, what, total = about[name]
        rows.append((f"cost_{name}", unit, f"{what}, beyond the budget of {limit:g}; limit 0", math.inf))
        rows.append((f"spent_{name}", unit, f"{what}, in this interval; sums to {total}; limit {limit:g}", math.inf))
    return tuple(Term(k, name, unit, 0, high, doc) for k, (name, unit, doc, high) in enumerate(rows))


def _columns(columns: Sequence[Column]) -> tuple[Term, ...]:
    return tuple(Term(k, c.name, c.unit, c.low, c.high, c.doc) for k, c in enumerate(columns))


def _coefficients() -> list[tuple[str, str]]:
    return [(column.name.lower(), term) for column, terms in COEF_TERMS for term in terms]


def _coefficient(control: str, term: str) -> str:
    """One coefficient of the `coef` view."""
    scale = next(
        f"{s:g} × {name} {'-' if shift < 0 else '+'} {abs(shift):g}" for name, _, s, shift in COEF_BASIS if name == term
    )
    what = "constant part" if term == "bias" else f"weight of {scale.replace(' + 0', '').replace('1 × ', '')}"
    c = _CONTROLS[control]
    return f"{what} in a group's {control}, {c.low:g} to {c.high:g} by tanh"


def _scaled(name: str, coef: bool) -> str:
    """One number of a continuous view that stands for one control."""
    c = _CONTROLS[name.rpartition(".")[2]]
    scale = " on a log scale" if coef and c.name == "window" else ""
    return f"{c.low:g} to {c.high:g} {c.unit}{scale}: {c.doc}"


def _choices(values: Sequence[float | str]) -> str:
    return "in order: " + ", ".join(v if isinstance(v, str) else f"{v:g}" for v in values)


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g} to {ends[1]:g}"


def _row(term: Term) -> dict[str, Any]:
    return {name: None if value == math.inf else value for name, value in asdict(term).items()}


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
