"""PiKV agents: training, baselines, evaluation, statistics, tracking, export and reports over `pikv_env`."""

from __future__ import annotations

import importlib
from typing import Any

# Name -> module: resolved on first use, so that `pikv --help` costs neither torch nor Stable-Baselines3.
# The modules carry other names than the functions: importing a submodule would shadow a function of its name.
_EXPORTS = {
    "train": "pikv_agents.training",
    "evaluate": "pikv_agents.evaluation",
    "export": "pikv_agents.exporting",
}
__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pikv_agents' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
