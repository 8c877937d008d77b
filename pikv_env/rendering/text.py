"""The film's last shot as one screen of text."""

from __future__ import annotations

from pikv_env.rendering.film import LABELS, RESIDENT, Film, Shot

WIDTH = 60
_MARKS = {"native": "N", "bf16": "B", "int8": "8", "int4": "4", "cached": "c"}
_LEVELS = " ▁▂▃▄▅▆▇█"


def draw_text(film: Film) -> str:
    """Title, memory by state against the cap, requests, control and recent history; ends with a newline."""
    if not film.shots:
        return f"{film.title}\n(no interval yet)\n"
    shot = film.shots[-1]
    n = shot.numbers
    counts = "  ".join(f"{_MARKS.get(name, ' ')} {name} {shot.counts[name]}" for name in LABELS[1:])
    lines = [
        film.title,
        f"time {shot.time_s:.0f} s   J so far {n['J']:.3f}   prefix hits {n['hit_share']:.0%}",
        "",
        f"memory  |{_bar(shot)}| {shot.resident_share:.0%} of the cap",
        f"pages   {counts}",
        f"queue   {shot.waiting} waiting, {shot.running} running, {shot.unfinished} to come or unfinished",
        f"asked   ratio {n['ratio']:.2f}   evict {n['evict']:.2f}   fan-out {n['fan_out']:.2f}   "
        f"cached share {n['cached_share']:.2f}",
        f"so far  {n['evicted_pages']:.0f} pages and {n['evicted_blocks']:.0f} blocks evicted, "
        f"{n['preemptions']:.0f} preemptions",
        "",
        f"cap     {_history([s.resident_share for s in film.shots], 1.0)}",
        f"waiting {_history([s.waiting for s in film.shots])}",
    ]
    return "\n".join(lines) + "\n"


def _bar(shot: Shot) -> str:
    """Bytes by state, `WIDTH` characters for the whole cap."""
    bar, end = "", 0.0
    for state in RESIDENT:
        end += shot.shares[LABELS[state]] * WIDTH
        bar += _MARKS[LABELS[state]] * (round(end) - len(bar))
    return bar[:WIDTH].ljust(WIDTH, ".")


def _history(values: list[float] | list[int], top: float | None = None) -> str:
    """The last `WIDTH` values as a line of bars; the largest is full unless `top` is."""
    recent = values[-WIDTH:]
    full = top if top is not None else max(1, *recent)
    return "".join(_LEVELS[min(8, round(8 * value / full))] for value in recent)
