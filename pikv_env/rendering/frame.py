"""The image of a film: pages × time coloured by state, memory against the cap, requests; 1280 × 720 pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pikv_env.rendering.film import CACHED, FREE, INT4, LABELS, RESIDENT, Film, Shot
from pikv_env.rendering.glyphs import Image, write

WIDTH, HEIGHT = 1280, 720
LEFT, RIGHT = 64, 1000
PAGES, MEMORY, QUEUE = (96, 440), (486, 590), (636, 680)
"""Top and bottom of the three panels, pixels."""
ASIDE = 1036
GAP, MOST_BANDS = 3, 8


def _colour(text: str) -> Image:
    return np.array([int(text[k : k + 2], 16) for k in (1, 3, 5)], np.uint8)


# The ladder is one hue from dark to light, since it is an order; the others are of Okabe and Ito's set, which the
# common forms of colour blindness keep apart.
PALETTE = np.stack([_colour(c) for c in ("#f2f2f0", "#08306b", "#2171b5", "#6baed6", "#aed4ee", "#f0c97d", "#b0457f")])
INK, MUTED, LINE, WHITE = (_colour(c) for c in ("#1f2933", "#66727f", "#d5dbe1", "#ffffff"))
QUEUED, RUNNING = _colour("#d55e00"), _colour("#a9b4bf")


def draw(film: Film) -> Image:
    """The film as it stands, (720, 1280, 3) uint8; an empty canvas before the first shot."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    if not film.shots:
        return image
    last = film.shots[-1]
    end_s = max(film.end_s, last.time_s)
    write(image, LEFT, 18, film.title, INK, 3)
    chosen, x_end = _columns(film, end_s)
    _draw_pages(image, film, chosen, x_end)
    _draw_memory(image, film, chosen, x_end)
    _draw_requests(image, film, chosen, x_end)
    _draw_axis(image, end_s)
    _draw_aside(image, last)
    return image


def _columns(film: Film, end_s: float) -> tuple[NDArray[np.int64], int]:
    """The shot shown in each column from `LEFT` to the present, and the column where the present is."""
    times = np.array([shot.time_s for shot in film.shots])
    x_end = LEFT + max(1, round((RIGHT - LEFT) * times[-1] / end_s))
    at = (np.arange(x_end - LEFT) + 0.5) / (RIGHT - LEFT) * end_s
    return np.minimum(np.searchsorted(times, at), len(times) - 1), x_end


def _frame(image: Image, panel: tuple[int, int], title: str, low: str = "", high: str = "") -> None:
    top, bottom = panel
    image[top - 1, LEFT - 1 : RIGHT + 1] = image[bottom, LEFT - 1 : RIGHT + 1] = LINE
    image[top - 1 : bottom + 1, LEFT - 1] = image[top - 1 : bottom + 1, RIGHT] = LINE
    write(image, LEFT, top - 24, title, MUTED)
    write(image, LEFT - 8, top, high, MUTED, align="right")
    write(image, LEFT - 8, bottom - 14, low, MUTED, align="right")


def _draw_pages(image: Image, film: Film, chosen: NDArray[np.int64], x_end: int) -> None:
    """A band for each layer (of many, some), in it a row for each address (of many, evenly chosen ones)."""
    top, bottom = PAGES
    layers = film.shots[-1].pages.shape[1]
    blocks = max(1, max(len(shot.pages) for shot in film.shots))
    bands = np.linspace(top, bottom + GAP, min(layers, MOST_BANDS) + 1).astype(int)
    shown = np.linspace(0, layers - 1, len(bands) - 1).round().astype(int)
    every = blocks * (len(bands) - 1) / (bottom - top)
    shown_part = f" (1 in {every:.0f} shown)" if every >= 1.5 else ""
    _frame(image, PAGES, f"pages: {layers} layers × {blocks} addresses{shown_part}")
    rows = [_rows(*band, blocks) for band in zip(shown, bands[:-1], bands[1:], strict=True)]
    y, address, layer = (np.concatenate(part) for part in zip(*rows, strict=True))
    strips = np.full((len(film.shots), len(y)), FREE, np.uint8)
    for strip, shot in zip(strips, film.shots, strict=True):
        held = address < len(shot.pages)
        strip[held] = shot.pages[address[held], layer[held]]
    image[y, LEFT:x_end] = PALETTE[strips[chosen].T]
    for number, low, high in zip(shown, bands[:-1], bands[1:], strict=True):
        write(image, LEFT - 8, (low + high) // 2 - 8, f"L{number}", MUTED, align="right")


def _rows(layer: int, low: int, high: int, blocks: int) -> tuple[NDArray[np.int64], ...]:
    """The rows of a layer's band from `low` to `high`: where they are, which address and which layer they show."""
    y = np.arange(low, high - GAP)
    address = ((y - low + 0.5) / len(y) * blocks).astype(np.int64)
    return y, address, np.full(len(y), layer)


def _draw_memory(image: Image, film: Film, chosen: NDArray[np.int64], x_end: int) -> None:
    """Bytes by state, one upon the other, as shares of the cap; the top of the panel is the cap."""
    top, bottom = MEMORY
    _frame(image, MEMORY, "bytes over the cap of all ranks", "0", "cap")
    rows = np.arange(bottom - top)[:, None]
    floor = np.zeros(len(chosen))
    for state in RESIDENT:
        share = np.array([shot.shares[LABELS[state]] for shot in film.shots])[chosen]
        low, floor = floor, floor + share * (bottom - top)
        inside = (rows >= low.round()) & (rows < floor.round())
        image[top:bottom, LEFT:x_end][::-1][inside] = PALETTE[state]
    image[top - 1, LEFT:RIGHT] = INK


def _draw_requests(image: Image, film: Film, chosen: NDArray[np.int64], x_end: int) -> None:
    """Running requests, and upon them the waiting ones."""
    top, bottom = QUEUE
    waiting = np.array([shot.waiting for shot in film.shots])
    running = np.array([shot.running for shot in film.shots])
    most = max(4, int((waiting + running).max()))
    _frame(image, QUEUE, "requests", "0", str(most))
    write(image, LEFT + 120, top - 24, "running", RUNNING)
    write(image, LEFT + 216, top - 24, "waiting", QUEUED)
    rows = np.arange(bottom - top)[:, None]
    panel = image[top:bottom, LEFT:x_end][::-1]
    height = (bottom - top - 2) / most
    panel[rows < ((running + waiting)[chosen] * height).round()] = QUEUED
    panel[rows < (running[chosen] * height).round()] = RUNNING


def _draw_axis(image: Image, end_s: float) -> None:
    """Ticks at round times below the panels."""
    unit, name = (60.0, "min") if end_s > 150 else (1.0, "s")
    steps = [1, 2, 5, 10, 15, 20, 30, 60, 120, 240, 600]
    step = next((s for s in steps if end_s / unit / s <= 8), steps[-1])
    for k in range(int(end_s / unit / step) + 1):
        x = LEFT + round((RIGHT - LEFT) * k * step * unit / end_s)
        image[QUEUE[1] : QUEUE[1] + 6, x : x + 2] = LINE
        label = f"{k * step} {name}" if k == 0 else str(k * step)
        write(image, x, QUEUE[1] + 12, label, MUTED, align="left" if k == 0 else "centre")


def _draw_aside(image: Image, shot: Shot) -> None:
    """Legend with the pages now, then the numbers of the moment."""
    write(image, ASIDE, PAGES[0] - 24, "pages now", MUTED)
    for k, state in enumerate((*RESIDENT, 6, FREE)):
        y = PAGES[0] + 28 * k
        image[y : y + 18, ASIDE : ASIDE + 18] = LINE
        image[y + 1 : y + 17, ASIDE + 1 : ASIDE + 17] = PALETTE[state]
        write(image, ASIDE + 28, y + 2, LABELS[state], INK)
        if state != FREE:
            write(image, WIDTH - 20, y + 2, str(shot.counts[LABELS[state]]), INK, align="right")
    n = shot.numbers
    rows = [
        ("time", f"{shot.time_s:.0f} s"),
        ("J so far", f"{n['J']:.3f}"),
        ("of the cap", f"{shot.resident_share:.0%}"),
        ("prefix hits", f"{n['hit_share']:.0%}"),
        ("evictions", f"{n['evicted_pages']:.0f}"),
        ("preemptions", f"{n['preemptions']:.0f}"),
        ("", ""),
        ("asked ratio", f"{n['ratio']:.2f}"),
        ("asked evict", f"{n['evict']:.2f}"),
        ("fan-out", f"{n['fan_out']:.2f}"),
        ("cached share", f"{n['cached_share']:.2f}"),
    ]
    for k, (name, value) in enumerate(rows):
        y = PAGES[0] + 28 * 8 + 26 * k
        write(image, ASIDE, y, name, MUTED)
        write(image, WIDTH - 20, y, value, INK, align="right")


assert len(PALETTE) == len(LABELS) and CACHED == INT4 + 1
