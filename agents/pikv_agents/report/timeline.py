"""Figures of one episode: where the pages were, and what was decided when."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pikv_agents.report.schema import Timeline, TimelineRun
from pikv_agents.report.style import (
    HEURISTIC,
    INK,
    LEARNED,
    MUTED,
    STATE_COLOURS,
    legend_above,
    styled,
    title,
)

_STATE_LABELS = {"native": "live, native", "bf16": "live, bf16", "int8": "live, int8", "int4": "live, int4"}
_CONTROLS = {
    "mean_ratio": ("Compression ratio", "asked mean over groups"),
    "evict_fraction": ("Eviction", "asked share of a group's evictable bytes"),
    "fan_out": ("Fan-out", "share of a request's pages that a query reads"),
    "cached_share": ("Cached share", "most of the cap that cached blocks may hold"),
    "r_pressure": ("Ratio under pressure", "how far pressure may demote; 1: it may not"),
}
_SHARES = ("evict_fraction", "fan_out", "cached_share")
_COLOURS = (LEARNED, HEURISTIC)


@styled
def pages(section: Timeline) -> Figure:
    """By policy: pages by state, bytes by state against the cap, pages evicted so far."""
    runs = section["runs"]
    figure = Figure((10.5, 6.2), layout="constrained")
    panels = figure.subplots(3, len(runs), sharex=True, sharey="row", height_ratios=(3, 2, 1.4), squeeze=False)
    for column, run in zip(panels.T, runs, strict=True):
        minutes = np.array(run["time_s"]) / 60
        _area(column[0], minutes, run["pages"])
        title(column[0], run["policy"], "pages in fast memory, by state")
        _area(column[1], minutes, run["bytes"])
        column[1].axhline(1, color=INK, linewidth=1)
        column[1].annotate("cap", (minutes[-1], 1), (-2, 3), textcoords="offset points", ha="right",
                           fontsize=8.5, color=MUTED)  # fmt: skip
        column[1].yaxis.set_major_formatter(PercentFormatter(1, 0))
        title(column[1], "", "bytes, share of the cap")
        _evicted(column[2], minutes, run)
        column[2].set_xlabel("model time, minutes")
        column[2].set_xlim(minutes[0], minutes[-1])
    _from_zero(panels)
    legend_above(figure, panels[0, 0])
    return figure


def _area(axes: Axes, minutes: np.ndarray, by_state: dict[str, list[float]]) -> None:
    states = [state for state in STATE_COLOURS if state in by_state]
    axes.stackplot(
        minutes,
        [by_state[state] for state in states],
        colors=[STATE_COLOURS[state] for state in states],
        labels=[_STATE_LABELS.get(state, state) for state in states],
        linewidth=0,
    )


def _from_zero(panels: np.ndarray) -> None:
    """Rows share their axis; it starts at zero only once every panel is drawn, or it would fit the first."""
    for row in panels:
        row[0].autoscale(axis="y")
        row[0].set_ylim(bottom=0)


def _evicted(axes: Axes, minutes: np.ndarray, run: TimelineRun) -> None:
    axes.fill_between(minutes, run["evicted"], color="#b0457f", alpha=0.18, linewidth=0)
    axes.plot(minutes, run["evicted"], color="#b0457f")
    last = run["evicted"][-1]
    axes.annotate(f"{last:,.0f}", (minutes[-1], last), (-3, -4), ha="right", va="top",
                  textcoords="offset points", fontsize=8.5, color="#8a2f62")  # fmt: skip
    title(axes, "", "pages evicted so far")


@styled
def decisions(section: Timeline) -> Figure:
    """Load at the top (pressure, queue), below it each control in force, both policies on one axis."""
    runs = section["runs"]
    controls = [name for name in _CONTROLS if any(name in run["controls"] for run in runs)]
    figure = Figure((10.5, 1.15 * (2 + len(controls)) + 0.6), layout="constrained")
    panels = figure.subplots(2 + len(controls), 1, sharex=True)
    for run, colour in zip(runs, _COLOURS, strict=False):
        minutes = np.array(run["time_s"]) / 60
        panels[0].plot(minutes, run["pressure"], color=colour, linewidth=1.3, label=run["policy"])
        panels[1].plot(minutes, run["queue"], color=colour, linewidth=1.3)
        for axes, name in zip(panels[2:], controls, strict=True):
            if name in run["controls"]:
                axes.plot(minutes, run["controls"][name], color=colour, drawstyle="steps-post", linewidth=1.4)
    _row(panels[0], "Pressure", "resident bytes on the fullest rank, share of the cap", share=True)
    _row(panels[1], "Queue", "requests waiting")
    for axes, name in zip(panels[2:], controls, strict=True):
        _row(axes, *_CONTROLS[name], share=name in _SHARES)
    panels[-1].set_xlabel("model time, minutes")
    legend_above(figure, panels[0])
    return figure


def _row(axes: Axes, name: str, note: str, share: bool = False) -> None:
    """Name on its own line above the axis, so that seven rows need no rotated labels."""
    axes.set_title(name, fontsize=9.5, pad=4)
    axes.set_title(note, loc="right", fontsize=8.5, color=MUTED, fontweight="normal", pad=4)
    axes.margins(x=0, y=0.15)
    axes.locator_params(axis="y", nbins=3)
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
