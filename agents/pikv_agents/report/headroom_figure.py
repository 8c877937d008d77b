"""Headroom of families: bars at one pressure, a matrix of families and pressures at several; and by lever."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from pikv_agents.report.schema import HeadroomRow
from pikv_agents.report.style import INK, LEARNED, MUTED, styled
from pikv_agents.report.verdict import LEAST_HEADROOM, REFERENCES, met

LITTLE = "#c3cad1"
NO_RIVALS = ("greedy", *REFERENCES)
LEVER_STYLES = {
    "retention": ("retention: which blocks stay", "#E69F00"),
    "compression": ("compression: which pages, how far", "#56B4E9"),
    "both": ("both", "#0072B2"),
    "switching": ("switching settings in time", "#B0457F"),
}
"""Label and colour by lever."""
_SCALE = LinearSegmentedColormap.from_list("headroom", ["#d6e6f2", LEARNED])
_FULL = 0.5  # headroom of the darkest cell


def counted(row: HeadroomRow) -> bool:
    """Whether a cell counts: enough headroom at a pressure that was reached."""
    return row["headroom"] >= LEAST_HEADROOM and met(row)


@styled
def headroom(rows: Sequence[HeadroomRow]) -> Figure:
    """Headroom by family; families under the threshold are reported in grey and do not count."""
    several = len({row["pressure"] for row in rows}) > 1
    return _matrix(rows) if several else _bars(rows)


def _bars(rows: Sequence[HeadroomRow]) -> Figure:
    ordered = sorted(rows, key=lambda row: row["headroom"])
    figure = Figure((8, 0.9 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(ordered):
        counts = counted(row)
        axes.barh(place, row["headroom"], 0.62, color=LEARNED if counts else LITTLE)
        axes.annotate(f"{row['headroom']:.0%}", (max(row["headroom"], 0), place), (5, 0), fontsize=9,
                      textcoords="offset points", va="center", color=INK if counts else MUTED)  # fmt: skip
    axes.axvline(LEAST_HEADROOM, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("counted from here", (LEAST_HEADROOM, len(rows) - 0.45), (5, 0), textcoords="offset points",
                  fontsize=8.5, color=MUTED, va="bottom")  # fmt: skip
    axes.set_yticks(range(len(rows)), [_name(row) for row in ordered], color=INK)
    axes.set_ylim(-0.6, len(rows))
    axes.grid(False, axis="y")
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_xlabel("how far J could fall below the best setting chosen in hindsight")
    return figure


def _name(row: HeadroomRow) -> str:
    unmet = "" if met(row) else f", reaches {row.get('pressure_reached', 0.0):.2g} of {row['pressure']:g}"
    return f"{row['family']}  ({row['split']}{unmet})"


def _matrix(rows: Sequence[HeadroomRow]) -> Figure:
    """A cell for each family and pressure, the family with most headroom at the top."""
    pressures = sorted({row["pressure"] for row in rows})
    best = {row["family"]: 0.0 for row in rows}
    for row in rows:
        best[row["family"]] = max(best[row["family"]], row["headroom"] if met(row) else 0.0)
    families = sorted(best, key=lambda family: best[family])
    splits = {row["family"]: row["split"] for row in rows}
    figure = Figure((8, 1.1 + 0.42 * len(families)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        _cell(axes, pressures.index(row["pressure"]), families.index(row["family"]), row)
    axes.set_xlim(-0.5, len(pressures) - 0.5)
    axes.set_ylim(-0.5, len(families) - 0.5)
    axes.set_xticks(range(len(pressures)), [f"{p:g}" for p in pressures], color=INK)
    axes.set_yticks(range(len(families)), [f"{name}  ({splits[name]})" for name in families], color=INK)
    axes.grid(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(
        "pressure asked. Percent: how far J could fall below the best setting chosen in hindsight\n"
        f"blue: counted (at least {LEAST_HEADROOM:.0%}); grey: less; hatched: the pressure is not reached\n"
        "small: the best rival that could be deployed, below (+) or above (−) that setting"
    )
    return figure


def _cell(axes, x: int, y: int, row: HeadroomRow) -> None:  # type: ignore[no-untyped-def]
    counts = counted(row)
    colour = _SCALE(min(1.0, row["headroom"] / _FULL)) if counts else "#eef0f2"
    style = {} if met(row) else {"hatch": "////", "edgecolor": "#ccd2d8", "linewidth": 0}
    axes.add_patch(Rectangle((x - 0.48, y - 0.44), 0.96, 0.88, facecolor=colour, **style))
    told = f"{row['headroom']:.0%}" if met(row) else f"only {row.get('pressure_reached', np.nan):.2g} reached"
    dark = counts and row["headroom"] > 0.6 * _FULL
    colour = "white" if dark else INK if counts else MUTED
    rival = best_rival(row)
    lifted = 0.0 if rival is None else 0.15
    axes.text(x, y + lifted, told, ha="center", va="center", fontsize=9, color=colour)
    if rival is not None:
        gain = 1 - row["policies"][rival]["J"] / row["policies"]["static_tuned"]["J"]
        axes.text(x, y - 0.24, f"best rival {_signed(gain)}", ha="center", va="center", fontsize=6.8,
                  color=colour)  # fmt: skip


def _signed(gain: float) -> str:
    """A share in whole per cent with a sign; 0 has none."""
    cents = round(100 * gain)
    return f"{'+' if cents > 0 else '−' if cents < 0 else ''}{abs(cents)}%"


def best_rival(row: HeadroomRow) -> str | None:
    """The policy of a row with least J that a server could run; None where there is nothing to compare."""
    rivals = [name for name in row["policies"] if name not in NO_RIVALS and "static_tuned" in row["policies"]]
    return min(rivals, key=lambda name: row["policies"][name]["J"], default=None)


@styled
def levers(rows: Sequence[HeadroomRow]) -> Figure:
    """What foresight gains on the best fixed setting by lever, for each counted cell that knows, most at the top."""
    known = sorted((row for row in rows if row.get("levers") and counted(row)), key=lambda row: row["headroom"])
    shown = {name: style for name, style in LEVER_STYLES.items() if any(name in row["levers"] for row in known)}
    figure = Figure((8, 1.2 + 0.42 * len(known)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(known):
        axes.barh(place, row["headroom"], 0.74, color="#e4e8ec")
        for k, (name, (_, colour)) in enumerate(shown.items()):
            gain = row["levers"].get(name, {}).get("gain")
            if gain is not None:
                axes.barh(place + 0.27 - 0.18 * k, gain, 0.15, color=colour)
    for label, colour in (("everything that was played", "#e4e8ec"), *shown.values()):
        axes.barh(0, 0, color=colour, label=label)
    axes.set_yticks(range(len(known)), [f"{row['family']}, pressure {row['pressure']:g}" for row in known], color=INK)
    axes.set_ylim(-0.6, len(known) - 0.4)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_xlabel("how far J falls below the best setting chosen in hindsight")
    figure.legend(loc="outside upper left", ncols=3, fontsize=8.5)
    return figure
