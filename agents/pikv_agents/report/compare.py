"""Tables and figure of a comparison (see `pikv_agents.comparison.compare`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from pikv_agents.report.style import HEURISTIC, INK, LEARNED, MUTED, REFERENCE, styled, title
from pikv_agents.report.tables import number, percent, plain_table, span
from pikv_agents.report.verdict import signed

_GROUP_COLOURS = (LEARNED, HEURISTIC, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK, REFERENCE)
_UNITS = {"workload": "workload seeds", "run": "evaluation files"}


def compare_tables(found: dict[str, Any]) -> list[Table]:
    """One table per part that the comparison has."""
    tables = []
    if found["evaluation"]:
        tables.append(_evaluation_table(found["evaluation"]))
    if found["training"]:
        tables.append(_training_table(found["training"]))
    return tables


def _evaluation_table(section: dict[str, Any]) -> Table:
    baseline = section["baseline"]
    right = ("J", "95%", f"J − {baseline}", "95%", "change", "P(win)")
    caption = (
        f"IQM of J over {', '.join(section['families'])}; intervals over {_UNITS[section['unit']]}; "
        "differences are means over pairs; less is better"
    )
    table = plain_table("Policies", ("policy",), right, caption)
    for policy, row in sorted(section["policies"].items(), key=lambda item: item[1]["J"]):
        other = section["differences"].get(policy)
        cells = ["–"] * 4
        if other:
            low, high = other["ci95"]
            interval = f"{signed(low, 2)}…{signed(high, 2)}"
            relative = f"{signed(100 * other['relative'], 1)}%"
            cells = [
                signed(other["difference"]),
                interval,
                relative,
                percent(other["probability_of_improvement"]),
            ]
        elif policy == baseline:
            cells[0] = "baseline"
        style = "" if not other else "green" if other["ci95"][1] < 0 else "red" if other["ci95"][0] > 0 else ""
        own = f"{row['ci95'][0]:.2f}…{row['ci95'][1]:.2f}" if row["ci95"] else "–"
        table.add_row(policy, number(row["J"]), own, *cells, style=style)
    return table


def _training_table(section: dict[str, Any]) -> Table:
    table = plain_table(f"Training: final {section['metric']}", ("group",), ("runs", "IQM", "95% interval"))
    for name, group in section["groups"].items():
        table.add_row(name, str(len(group["runs"])), number(group["iqm"]), span(group["ci95"]))
    return table


@styled
def compare_figure(found: dict[str, Any]) -> Figure:
    """J by policy beside its paired difference to the baseline; training curves by group below."""
    evaluation, training = found["evaluation"], found["training"]
    rows = 0.9 + 0.34 * len(evaluation["policies"]) if evaluation else 0
    heights = [height for height in (rows, 3 if training else 0) if height]
    figure = Figure((10.5, sum(heights)), layout="constrained")
    parts = iter(np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights)))
    if evaluation:
        left, right = next(parts).subplots(1, 2, sharey=True)
        _policies_panel(left, evaluation)
        _differences_panel(right, evaluation)
    if training:
        _training_panel(next(parts).subplots(), training)
    return figure


def _order(section: dict[str, Any]) -> list[str]:
    return sorted(section["policies"], key=lambda policy: section["policies"][policy]["J"], reverse=True)


def _policies_panel(axes: Axes, section: dict[str, Any]) -> None:
    order = _order(section)
    values = [section["policies"][policy]["J"] for policy in order]
    limit = 1.7 * float(np.median(values))  # one run-away policy must not squeeze the others together
    for place, policy in enumerate(order):
        row = section["policies"][policy]
        if row["J"] > limit:
            axes.plot(limit, place, ">", color=LEARNED)
            axes.annotate(f"{row['J']:.2f}", (limit, place), (-8, 0), ha="right", va="center",
                          textcoords="offset points", fontsize=9)  # fmt: skip
            continue
        if row["ci95"]:
            axes.plot(row["ci95"], [place, place], color=LEARNED, linewidth=2.4, solid_capstyle="round")
        axes.plot(row["J"], place, "o", color=LEARNED)
    axes.set_yticks(range(len(order)), order, color=INK)
    axes.grid(False, axis="y")
    title(axes, "J", "interquartile mean with 95% interval; less is better")


def _differences_panel(axes: Axes, section: dict[str, Any]) -> None:
    order = _order(section)
    known = {p: row for p, row in section["differences"].items() if row}
    limit = 4 * float(np.median([abs(row["difference"]) for row in known.values()])) if known else 1.0
    axes.axvline(0, color=MUTED, linewidth=1)
    for place, policy in enumerate(order):
        row = known.get(policy)
        if row is None:
            text = "baseline" if policy == section["baseline"] else "no pairs"
            axes.annotate(text, (0, place), (6, 0), textcoords="offset points", va="center", color=MUTED)
            continue
        low, high = row["ci95"]
        colour = LEARNED if high < 0 else HEURISTIC if low > 0 else REFERENCE
        if abs(row["difference"]) > limit:
            side = np.sign(row["difference"])
            axes.plot(side * limit, place, ">" if side > 0 else "<", color=colour)
            continue
        axes.plot([low, high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot(row["difference"], place, "o", color=colour)
    axes.grid(False, axis="y")
    title(axes, f"J − {section['baseline']}", "mean over pairs with 95% interval; left of zero is better")


def _training_panel(axes: Axes, section: dict[str, Any]) -> None:
    """Per group the mean curve over its runs, and the range between their extremes."""
    for (name, group), colour in zip(section["groups"].items(), _GROUP_COLOURS * 9, strict=False):
        curves = [(np.array(c["step"]) / 1000, np.array(c["value"])) for c in group["curves"]]
        steps = curves[0][0][curves[0][0] <= min(x[-1] for x, _ in curves)]
        values = np.stack([np.interp(steps, x, y) for x, y in curves])
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.plot(steps, values.mean(0), color=colour)
        axes.annotate(name, (steps[-1], values.mean(0)[-1]), (6, 0), textcoords="offset points", va="center",
                      color=colour, annotation_clip=False)  # fmt: skip
    axes.margins(x=0.02)
    axes.set_xlabel("environment steps, thousands")
    title(axes, section["metric"], "mean over the runs of a group, with their range")
