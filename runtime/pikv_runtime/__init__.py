"""PiKV runtime: an expert-sharded paged KV cache that a Mixture-of-Experts model decodes from."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Name -> module: resolved on first use, so that `import pikv_runtime` costs neither torch nor transformers.
_EXPORTS = {
    "RuntimeConfig": "pikv_runtime.config",
    "Control": "pikv_runtime.contract",
    "Telemetry": "pikv_runtime.contract",
    "CONTRACT_HASH": "pikv_runtime.contract",
    "Request": "pikv_runtime.requests",
    "RequestList": "pikv_runtime.requests",
    "Engine": "pikv_runtime.engine",
    "attach": "pikv_runtime.models.hf",
    "generate": "pikv_runtime.models.generation",
    "load_model": "pikv_runtime.models",
    "load_policy": "pikv_runtime.policy",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pikv_runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
