"""One self-contained `report.html`: inline style, inline SVG, no script, nothing fetched from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from pikv_agents.report import figures, headroom_figure, tables, timeline
from pikv_agents.report.schema import Summary, check_summary
from pikv_agents.report.style import to_svg
from pikv_agents.report.verdict import Verdict, counting, role, signed, verdict

_HERE = Path(__file__).parent
_BADGES = {"wins": "It wins", "ties": "No difference shown", "loses": "It loses"}


def draw_all(summary: Summary) -> dict[str, Figure]:
    """Every figure that the summary has data for, by name."""
    wanted = {
        "overall": ("evaluation", figures.overall),
        "cost_parts": ("evaluation", figures.cost_parts),
        "training": ("training", figures.training),
        "coverage": ("coverage", figures.coverage),
        "headroom": ("headroom", headroom_figure.headroom),
        "pages": ("timeline", timeline.pages),
        "decisions": ("timeline", timeline.decisions),
    }
    if not summary.get("training", {}).get("curve"):
        del wanted["training"]
    return {name: draw(summary[key]) for name, (key, draw) in wanted.items() if summary.get(key)}


def _tiles(summary: Summary, found: Verdict | None) -> list[tuple[str, str]]:
    """The few numbers a reader looks for first: (number, what it is)."""
    tiles = []
    if found:
        relative = f"{signed(100 * found.relative, 1)}%"
        tiles.append((relative, f"J against {found.baseline}, the best heuristic"))
        gap = summary["evaluation"]["iqm"][found.learned].get("gap_closed_static_tuned")
        if gap is not None:
            tiles.append((f"{gap:.0%}", "of the gap between static_tuned and the oracle bound closed"))
    if "policy" in summary and summary["policy"]["decision_us"]:
        runner, fastest = min(summary["policy"]["decision_us"].items(), key=lambda item: item[1])
        tiles.append((f"{fastest:.1f} µs", f"one decision ({runner})"))
    if "training" in summary:
        seconds = summary["training"]["seconds"]
        steps = summary["training"]["curve"][-1]["step"] if summary["training"]["curve"] else 0
        tiles.append((_duration(seconds), f"training, {steps:,} steps"))
    return tiles


def _verdict(summary: Summary) -> Verdict | None:
    """The verdict, or None where no learned policy was evaluated."""
    section = summary.get("evaluation")
    if not section or not any(role(section, policy) == "learned" for policy in section["iqm"]):
        return None
    return verdict(section)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def render(value: Any) -> str:
    """The page for a summary (checked first); the verdict is computed here, from evaluation intervals."""
    summary = check_summary(value)
    found = _verdict(summary)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        number=tables.number, percent=tables.percent, span=tables.span, duration=_duration, signed=signed
    )
    return environment.get_template("page.html.j2").render(
        s=summary,
        title=summary["meta"].get("title", "PiKV report"),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        svg={name: Markup(to_svg(figure)) for name, figure in draw_all(summary).items()},
        verdict=found,
        badge=_BADGES[found.outcome] if found else None,
        tiles=_tiles(summary, found),
        counting=counting(summary["evaluation"]) if "evaluation" in summary else None,
        role=lambda policy: role(summary["evaluation"], policy),
    )


def write_report(value: Any, path: Path | str) -> Path:
    """Render `value` (the content of `summary.json`) into the file `path`."""
    path = Path(path)
    page = render(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
