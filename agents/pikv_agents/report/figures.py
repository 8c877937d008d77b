"""Figures of results: J by policy, its parts, training, coverage; each from its section."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pikv_agents.report.schema import CoverageRow, Evaluation, PolicyCosts, Training
from pikv_agents.report.style import (
    HEURISTIC,
    INK,
    LEARNED,
    PART_COLOURS,
    REFERENCE,
    ROLE_COLOURS,
    legend_above,
    styled,
    title,
)  # fmt: skip
from pikv_agents.report.verdict import role

_FAR = 1.7  # bars longer than this many median bars are cut and labelled: the others stay readable


@styled
def overall(evaluation: Evaluation) -> Figure:
    """IQM of J over the counted families by policy, with intervals, best at the top."""
    rows = sorted(evaluation["iqm"].items(), key=lambda item: item[1]["J"], reverse=True)
    figure = Figure((8, 0.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    limit = _FAR * float(np.median([row["J"] for _, row in rows]))
    for place, (policy, row) in enumerate(rows):
        colour = ROLE_COLOURS[role(evaluation, policy)]
        shown = min(row["J"], limit)
        if row.get("ci95") and row["J"] <= limit:
            axes.plot(row["ci95"], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot(shown, place, ">" if row["J"] > limit else "o", color=colour, markersize=7)
        right = shown if row["J"] > limit else max(shown, *(row.get("ci95") or [shown]))
        label = f"{row['J']:.2f}"
        axes.annotate(label, (right, place), (7, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [policy for policy, _ in rows])
    for label, (policy, _) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(INK)
        label.set_fontweight("bold" if role(evaluation, policy) == "learned" else "normal")
    axes.grid(False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel("J, interquartile mean over families with 95% interval (less is better)")
    _role_legend(axes)
    return figure


def _role_legend(axes: Axes) -> None:
    names = {"learned": "learned", "heuristic": "without learning", "reference": "hindsight or bound"}
    for key, label in names.items():
        axes.plot([], [], "o", color=ROLE_COLOURS[key], label=label)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3, handletextpad=0.2)


def _parts(row: PolicyCosts, evaluation: Evaluation) -> dict[str, float]:
    return {
        "latency": row["latency"],
        "memory": evaluation["lambda1"] * row["memory"],
        "lost fidelity": evaluation["lambda2"] * (1 - row["fidelity"]),
    }


def _chosen(evaluation: Evaluation, most: int = 7) -> list[str]:
    """Learned policies, the best heuristics by IQM, then references, `most` in all, in order of IQM."""
    order = sorted(evaluation["iqm"], key=lambda policy: evaluation["iqm"][policy]["J"])
    by_role = {key: [p for p in order if role(evaluation, p) == key] for key in ROLE_COLOURS}
    chosen = by_role["learned"] + by_role["heuristic"][:3] + by_role["reference"] + by_role["heuristic"][3:]
    return [policy for policy in order if policy in chosen[:most]]


@styled
def cost_parts(evaluation: Evaluation) -> Figure:
    """Small multiples by family: J of each policy as its three parts stacked, with intervals."""
    policies, families = _chosen(evaluation), list(evaluation["families"])
    columns = min(3, len(families))
    lines = math.ceil(len(families) / columns)
    figure = Figure((10.5, 0.7 + lines * (0.75 + 0.25 * len(policies))), layout="constrained")
    grid = np.atleast_1d(figure.subplots(lines, columns, sharey=True)).ravel()
    for axes, family in zip(grid, families, strict=False):
        _family_panel(axes, evaluation, family, policies)
    for axes in grid[len(families) :]:
        axes.set_visible(False)
    figure.get_layout_engine().set(h_pad=0.1)
    legend_above(figure, grid[0])
    return figure


def _family_panel(axes: Axes, evaluation: Evaluation, family: str, policies: list[str]) -> None:
    row = evaluation["families"][family]
    shown = [(place, p) for place, p in enumerate(reversed(policies)) if p in row["policies"]]
    totals = [sum(_parts(row["policies"][p], evaluation).values()) for _, p in shown]
    limit = _FAR * float(np.median(totals)) if totals else 1.0
    for (place, policy), total in zip(shown, totals, strict=True):
        left, costs = 0.0, row["policies"][policy]
        for part, value in _parts(costs, evaluation).items():
            width = max(0.0, min(value, limit - left))
            label = part if place == shown[0][0] else None
            axes.barh(place, width, 0.68, left, color=PART_COLOURS[part], label=label)
            left += width
        if total > limit:
            axes.annotate(f"{total:.1f} →", (limit, place), (-4, 0), textcoords="offset points", ha="right",
                          va="center", fontsize=8.5, fontweight="bold", color=INK)  # fmt: skip
        elif costs.get("ci95"):
            axes.plot(costs["ci95"], [place, place], color=INK, linewidth=1.2)
            axes.plot(costs["ci95"], [place, place], "|", color=INK, markersize=5)
    axes.set_yticks(range(len(policies)), list(reversed(policies)), color=INK, fontsize=8.5)
    axes.grid(False, axis="y")
    room = row.get("headroom")
    title(axes, family, row["split"] + (f", headroom {room:.0%}" if room is not None else ""))


@styled
def training(section: Training) -> Figure:
    """Episode return over steps, and J of the evaluations where there were any."""
    points = section["curve"]
    evaluated = [(p["step"], p["eval_J"]) for p in points if p.get("eval_J") is not None]
    figure = Figure((10.5 if evaluated else 7, 3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, 2 if evaluated else 1))
    steps = np.array([p["step"] for p in points]) / 1000
    returns = np.array([p["episode_return"] for p in points])
    panels[0].plot(steps, returns, color=LEARNED, alpha=0.3, linewidth=1)
    width = max(1, len(points) // 20)
    smooth = np.convolve(returns, np.ones(width) / width, "valid")
    panels[0].plot(steps[width - 1 :], smooth, color=LEARNED)
    title(panels[0], "Episode return", f"−J of training episodes; line: mean over {width} point(s)")
    if evaluated:
        x, y = np.array(evaluated).T
        panels[1].plot(x / 1000, y, "o-", color=LEARNED, markersize=4)
        panels[1].annotate(f"{y[-1]:.2f}", (x[-1] / 1000, y[-1]), (6, 0), textcoords="offset points",
                           va="center", color=LEARNED)  # fmt: skip
        title(panels[1], "J on the validation families", "deterministic policy; less is better")
    for axes in panels:
        axes.set_xlabel("environment steps, thousands")
    return figure


_ROUTERS = {
    "best": (INK, "best possible"),
    "centroid": (LEARNED, "centroid"),
    "gate": (HEURISTIC, "gate"),
    "random": (REFERENCE, "random"),
}


@styled
def coverage(rows: Sequence[CoverageRow]) -> Figure:
    """One panel per budget: share of far attention mass by layer, a labelled line per router."""
    budgets = sorted({row["budget"] for row in rows})
    figure = Figure((0.8 + 4.6 * len(budgets), 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(budgets), sharey=True))
    for axes, budget in zip(panels, budgets, strict=True):
        here = sorted((row for row in rows if row["budget"] == budget), key=lambda row: row["layer"])
        layers = [row["layer"] for row in here]
        for router, (colour, _) in _ROUTERS.items():
            axes.plot(layers, [row[router] for row in here], "o-", color=colour, markersize=4)
        title(axes, f"{budget:.0%} of the pages read", "share of far attention mass, by layer")
        axes.set_xticks(layers)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.set_xlabel("layer")
        _end_labels(axes, layers[-1], {label: (here[-1][r], c) for r, (c, label) in _ROUTERS.items()})
    return figure


def _end_labels(axes: Axes, x: float, ends: dict[str, tuple[float, str]], apart: float = 0.065) -> None:
    """Name each line at its right end, pushed up where two would overlap (y runs from 0 to 1)."""
    height = -1.0
    for label, (y, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        height = max(y, height + apart)
        axes.annotate(label, (x, height), (7, 0), textcoords="offset points", va="center", color=colour,
                      fontsize=8.5, annotation_clip=False)  # fmt: skip
