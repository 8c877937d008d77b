"""Colours, matplotlib settings and the way from a figure to SVG that all figures share.

Hues are Okabe and Ito's, distinct under the common forms of colour blindness; the ladder of codecs is one hue
from dark to light, since it is an order and not a set of kinds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
LEARNED, HEURISTIC, REFERENCE = "#0072B2", "#D55E00", "#8a949e"
ROLE_COLOURS = {"learned": LEARNED, "heuristic": HEURISTIC, "reference": REFERENCE}
PART_COLOURS = {"latency": "#56B4E9", "memory": "#E69F00", "lost fidelity": "#B0457F"}
STATE_COLOURS = {
    "native": "#08306b",
    "bf16": "#2171b5",
    "int8": "#6baed6",
    "int4": "#c6dbef",
    "cached": "#F0C97D",
}

RC = {
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#b6bfc8",
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # text stays text: selectable, small, in the reader's font
    "svg.hashsalt": "pikv",  # the same figure gives the same bytes
}

Draw = Callable[..., Figure]


def styled(draw: Draw) -> Draw:
    """Draw under the settings above, whatever the caller's are."""

    @wraps(draw)
    def inner(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return inner


def title(axes: Axes, text: str, note: str = "") -> None:
    """A bold title at the left, with what is on the axis in small grey letters below it."""
    axes.set_title(text, pad=20 if note else 8)
    if note:
        axes.annotate(note, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8.5, color=MUTED)


def legend_above(figure: Figure, axes: Axes, columns: int = 6) -> None:
    """One legend for the whole figure in a row above the panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.2)


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element without metadata: nothing in it names another address."""
    buffer = io.StringIO()
    with mpl.rc_context(RC):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)  # halves the size
    return re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)


def save(figure: Figure, path: Path | str) -> Path:
    """Write the figure in the format of the file's ending (png, svg, pdf)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(RC):
        figure.savefig(path, dpi=160)
    return path
