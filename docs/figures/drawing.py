"""Boxes, arrows and captions for the diagrams of the book."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, MUTED = "#1f2933", "#66727f"
LEDGER, TENSOR, MODEL, CONTROL, WIRE, PLAIN = "#dbe9f6", "#fdebd0", "#eceff1", "#e4f1e1", "#f6dde6", "#ffffff"
EDGE = {
    LEDGER: "#2171b5", TENSOR: "#c27d0e", MODEL: "#7b8794", CONTROL: "#3f8f4f", WIRE: "#b0457f", PLAIN: "#9aa5b1",
}  # fmt: skip


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure whose data units are inches."""
    figure, axes = plt.subplots(figsize=(width, height))
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(
    axes: Any, x: float, y: float, w: float, h: float, text: str, fill: str = PLAIN, note: str = "", size: float = 9.0
) -> None:
    """A rounded box with its lower left corner at (x, y): `text` in ink, `note` in small grey letters below it."""
    edge = EDGE.get(fill, MUTED)
    axes.add_patch(
        FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.06", fc=fill, ec=edge, lw=1.1, zorder=2)
    )
    lines = 1 + note.count("\n") if note else 0
    lift = 0.075 * lines
    axes.text(x + w / 2, y + h / 2 + lift, text, ha="center", va="center", size=size, color=INK, zorder=3)
    if note:
        below = y + h / 2 - 0.11 * (1 + text.count("\n")) + 0.02
        axes.text(
            x + w / 2, below, note, ha="center", va="top", size=size - 1.8, color=MUTED, zorder=3, linespacing=1.2
        )


def arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], text: str = "", *, bend: float = 0.0,
    colour: str = MUTED, at: tuple[float, float] | None = None, ha: str = "center", dashed: bool = False,
) -> None:  # fmt: skip
    """An arrow; its `text` stands at `at`, or above its middle."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=10, lw=1.2, color=colour, zorder=1, shrinkA=1, shrinkB=1,
            connectionstyle=f"arc3,rad={bend}", linestyle="--" if dashed else "-",
        )
    )  # fmt: skip
    if text:
        x, y = at or ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.09)
        axes.text(x, y, text, ha=ha, va="center", size=7.6, color=colour, zorder=4, linespacing=1.2)


def caption(axes: Any, x: float, y: float, text: str, size: float = 8.0, colour: str = MUTED, **more: Any) -> None:
    """Free text, its upper left corner at (x, y)."""
    axes.text(x, y, text, ha=more.pop("ha", "left"), va="top", size=size, color=colour, linespacing=1.3, **more)


def heading(axes: Any, x: float, y: float, text: str) -> None:
    """A bold line."""
    axes.text(x, y, text, ha="left", va="center", size=10.5, weight="bold", color=INK)
