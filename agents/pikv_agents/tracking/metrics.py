"""What a run folder holds: `run.json` (name, group, tags, config), `metrics.jsonl` (a row per log call)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pikv_env.whole_file import write_whole

METRIC_GROUPS = ("charts/", "cost/", "eval/", "losses/", "quick/")
METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Plain floats; ValueError names the metric whose group is unknown or whose value is not finite."""
    checked = {}
    for name, value in metrics.items():
        if not name.startswith(METRIC_GROUPS) or name.endswith("/"):
            raise ValueError(f"metric {name!r}: names start with one of {', '.join(METRIC_GROUPS)}")
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"metric {name!r}={value!r}: must be a number") from None
        if not math.isfinite(number):
            raise ValueError(f"metric {name!r}={number}: NaN and infinity are refused")
        checked[name] = number
    return checked


def write_json(path: Path | str, value: Any) -> Path:
    """Write `value` as JSON so that a reader sees the old file or the whole new one; NaN is refused."""
    path = Path(path)
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n").encode())
    return path


def _plain(value: Any) -> Any:
    """NumPy values as lists and numbers, paths and the rest as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def read_metrics(path: Path | str) -> dict[str, dict[str, list[float]]]:
    """Series by metric, `{metric: {"step": [...], "value": [...]}}`, of a run folder or its `metrics.jsonl`.

    A last line cut short by a killed run is left out; any other broken line is a ValueError naming it.
    """
    path = Path(path)
    path = path / METRICS_FILE if path.is_dir() else path
    series: dict[str, dict[str, list[float]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON") from None
        for name, value in row["metrics"].items():
            column = series.setdefault(name, {"step": [], "value": []})
            column["step"].append(row["step"])
            column["value"].append(value)
    return series


def read_run(folder: Path | str) -> dict[str, Any]:
    """The folder's `run.json`; a folder without one is a run of its own name and group."""
    folder = Path(folder)
    path = folder / RUN_FILE
    if not path.exists():
        return {"name": folder.name, "group": folder.name, "tags": [], "config": {}}
    return json.loads(path.read_text(encoding="utf-8"))
