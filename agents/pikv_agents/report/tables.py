"""Terminal tables (rich) of coverage, headroom, evaluation and live runs, each from its section."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pikv_agents.report.schema import CoverageRow, Evaluation, HeadroomRow, Live, Policy
from pikv_agents.report.verdict import LEAST_HEADROOM, counting, met, role

LOG_WIDTH = 128
REACHING = "pressure asked (reached; *: too far below it to count as that pressure)"
_STYLES = {"learned": "bold cyan", "heuristic": "", "reference": "dim"}


def plain_table(title: str, left: Sequence[str], right: Sequence[str], caption: str | None = None) -> Table:
    """A table with text columns `left` and right-aligned number columns `right`."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.caption, table.caption_justify = caption, "left"
    for name in left:
        table.add_column(name, overflow="fold")  # text gives way before numbers do
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def plain_statistics(values: Mapping[str, float]) -> Table:
    """Names and values, a line each; whole numbers without digits."""
    table = plain_table("", ("statistic",), ("value",))
    table.title = None  # a title would be broken at the width of two narrow columns
    for name, value in values.items():
        table.add_row(name, f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}")
    return table


def console() -> Console:
    """Where tables go: as wide as the terminal, or `LOG_WIDTH` where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits, or a dash where there is no value."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A whole percentage, or a dash where there is no value."""
    return "–" if value is None else f"{value:.0%}"


def span(value: Sequence[float] | None) -> str:
    """An interval as `low … high`, or a dash."""
    return f"{value[0]:.3f}…{value[1]:.3f}" if value else "–"


def pressure(row: Mapping[str, Any]) -> str:
    """Pressure asked; in brackets the one reached where that is lower, with a star where it does not count as such."""
    asked, got = row.get("pressure"), row.get("pressure_reached")
    if asked is None:
        return "–"
    return f"{asked:g}" if got is None or got >= 0.99 * asked else f"{asked:g} ({got:.2g}){'' if met(row) else '*'}"


def coverage(rows: Sequence[CoverageRow]) -> Table:
    """Share of far attention mass by layer, budget and router."""
    routers = ("gate", "centroid", "random", "best")
    title = "Coverage: share of far attention mass on the pages read"
    table = plain_table(title, (), ("layer", "budget", *routers))
    for row in rows:
        cells = (percent(row[router]) for router in routers)
        table.add_row(str(row["layer"]), percent(row["budget"]), *cells)
    return table


def headroom(rows: Sequence[HeadroomRow]) -> Table:
    """J by family and reference policy, and what could still be gained."""
    policies = list(dict.fromkeys(policy for row in rows for policy in row["policies"]))
    caption = f"{REACHING}; rows of such a pressure or of under {LEAST_HEADROOM:.0%} headroom are dim and do not count"
    bounds = ("relaxation", "feasible") if any("oracle" in row for row in rows) else ()
    names = (*(policy.replace("_", "\n") for policy in policies), *(f"oracle\n{bound}" for bound in bounds))
    right = ("pressure", *names, "headroom")
    table = plain_table("Headroom: J by family", ("family",), right, caption)
    for row in rows:
        values = [number(row["policies"].get(policy, {}).get("J"), 2) for policy in policies]
        values += [number(row.get("oracle", {}).get(bound), 2) for bound in bounds]
        style = "" if row["headroom"] >= LEAST_HEADROOM and met(row) else "dim"
        table.add_row(row["family"], pressure(row), *values, percent(row["headroom"]), style=style)
    return table


def evaluation(section: Evaluation) -> Table:
    """IQM of J by policy, best first, with the share of the gap to the oracle that it closes."""
    counted = counting(section)
    right = ("J", "95% interval", "gap closed (global)", "gap closed (tuned)")
    caption = (
        f"counted: {', '.join(counted.families)}; {counted.rule}. Gap: from static_global or static_tuned to the "
        "oracle bound"
    )
    table = plain_table("Evaluation: less J is better", ("policy", "role"), right, caption)
    for policy, row in sorted(section["iqm"].items(), key=lambda item: item[1]["J"]):
        kind = role(section, policy)
        gaps = [percent(row.get(f"gap_closed_static_{which}")) for which in ("global", "tuned")]
        table.add_row(policy, kind, number(row["J"]), span(row.get("ci95")), *gaps, style=_STYLES[kind])
    return table


def by_pressure(section: Evaluation) -> Table:
    """IQM of J by policy and pressure, over the held-out families that reach it."""
    told = section.get("by_pressure") or {}
    missed = [f"{p} is not reached by {', '.join(one['missed'])}" for p, one in told.items() if one["missed"]]
    caption = "; ".join(["held-out families, whatever their headroom", *missed])
    right = tuple(f"{p}\n{len(one['families'])} families" for p, one in told.items())
    table = plain_table("Evaluation by pressure: IQM of J", ("policy",), right, caption)
    for policy in sorted(section["iqm"], key=lambda one: section["iqm"][one]["J"]):
        values = [number(one["policies"].get(policy, {}).get("J")) for one in told.values()]
        table.add_row(policy, *values, style=_STYLES[role(section, policy)])
    return table


def evaluations(section: Evaluation) -> list[Table]:
    """All tables of an evaluation, in the order of reading."""
    middle = [by_pressure(section)] if section.get("by_pressure") else []
    return [families(section), *middle, evaluation(section)]


def families(section: Evaluation) -> Table:
    """Every policy on every family, with the parts of J."""
    right = ("J", "95% interval", "latency", "memory", "fidelity", "worst")
    caption = f"{REACHING}; latency: L / L_U; memory: M; fidelity: F; worst: loss of the worst request"
    table = plain_table("Evaluation by family: less J is better", ("family", "policy"), right, caption)
    for family, block in section["families"].items():
        ordered = sorted(block["policies"].items(), key=lambda item: item[1]["J"])
        heads = [f"{family} ({block['split']})", f"  pressure {pressure(block)}"]
        for place, (policy, row) in enumerate(ordered):
            table.add_row(
                heads[place] if place < len(heads) else "", policy,
                number(row["J"]), span(row.get("ci95")), number(row["latency"]), number(row["memory"]),
                number(row["fidelity"], 4), number(row.get("worst_request"), 2),
                style=_STYLES[role(section, policy)], end_section=place == len(ordered) - 1,
            )  # fmt: skip
    return table


def decisions(section: Policy) -> Table:
    """Time of one decision by runner, fastest first."""
    table = plain_table(f"Decision of {section['bundle']}", ("runner",), ("µs", "ratio"))
    fastest = min(section["decision_us"].values())
    for runner, value in sorted(section["decision_us"].items(), key=lambda item: item[1]):
        table.add_row(runner, number(value, 1), f"{value / fastest:.1f}x")
    return table


def live(section: Live) -> Table:
    """Trace prediction and live run of each policy."""
    right = ("where", "J", "latency", "memory", "fidelity", "tokens/s", "decision\nµs", "ranks\nagree")
    title = f"Live: {section['family']}, {section['ranks']} rank(s)"
    table = plain_table(title, ("policy",), right, "ranks agree: all ranks put the same controls into force")
    for row in section["rows"]:
        table.add_row(
            row["policy"], row["where"], number(row["J"]), number(row["latency"]), number(row["memory"]),
            number(row["fidelity"], 4), number(row.get("tokens_per_second"), 0),
            number(row.get("decision_us"), 1), _yes(row.get("controls_identical_on_ranks")),
        )  # fmt: skip
    return table


def _yes(value: Any) -> str:
    return "–" if value is None else "yes" if value else "NO"
