"""One logger for JSON lines and W&B, its Stable-Baselines3 writer, and the reader of what was written."""

from __future__ import annotations

import importlib
from typing import Any

# Resolved on first use: reading metrics must import neither W&B nor Stable-Baselines3 (which imports torch).
_EXPORTS = {
    "RunLogger": "pikv_agents.tracking.logger",
    "TrackingError": "pikv_agents.tracking.logger",
    "SB3KVWriter": "pikv_agents.tracking.sb3",
    "METRIC_GROUPS": "pikv_agents.tracking.metrics",
    "read_metrics": "pikv_agents.tracking.metrics",
    "read_run": "pikv_agents.tracking.metrics",
    "write_json": "pikv_agents.tracking.metrics",
}
__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pikv_agents.tracking' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
