"""What keyword arguments of the environments stand for: the trace library and the configuration."""

from __future__ import annotations

import functools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pikv_env.config import EnvConfig
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.registry import UnknownNameError

BUILTIN_PATH = Path(__file__).parent / "data" / "traces.safetensors"
_RANGES = ("pressure", "load", "lambda1", "lambda2")


@functools.lru_cache(maxsize=4)
def _load(path: Path) -> TraceLibrary:
    return TraceLibrary.load(path)


def resolve_library(library: TraceLibrary | str | Path | None = None) -> TraceLibrary:
    """A library itself, from a file, or (None) the built-in one. Files are read once.

    Raises:
        FileNotFoundError: there is no such file, or no built-in library.
        TraceError: the file is not a sound library.
    """
    if isinstance(library, TraceLibrary):
        return library
    path = BUILTIN_PATH if library is None else Path(library)
    if not path.exists():
        what = "no built-in trace library" if library is None else f"no trace library at {path}"
        raise FileNotFoundError(f"{what}: record one with `pikv record` and pass its path as library=...")
    return _load(path)


def make_config(config: EnvConfig | None = None, **changes: Any) -> EnvConfig:
    """`config` (or the default) with some fields changed; a single number stands for a range of equal ends.

    Raises:
        UnknownNameError: no such field.
    """
    known = [f.name for f in fields(EnvConfig)]
    for name, value in changes.items():
        if name not in known:
            known = sorted([*known, "library", "seed", "config"])
            raise UnknownNameError("environment argument", name, known)
        if name in _RANGES:
            changes[name] = (value, value) if isinstance(value, int | float) else tuple(value)
        elif name == "families":
            changes[name] = (value,) if isinstance(value, str) else tuple(value)
    return replace(config if config is not None else EnvConfig(), **changes)
