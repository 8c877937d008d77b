"""What keyword arguments of the environments stand for: the trace library and the configuration."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pikv_env.config import EnvConfig
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.config import RuntimeConfig
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


def make_config(
    config: EnvConfig | Mapping[str, Any] | None = None, default: EnvConfig | None = None, **changes: Any
) -> EnvConfig:
    """`config` (or the default) with some fields changed; a single number stands for a range of equal ends.

    What comes from JSON is welcome: `config` and `runtime` may be mappings (of the fields that differ from the
    default, or of all), lists stand for tuples.

    Raises:
        UnknownNameError: no such field.
        ValueError: a field that cannot be read as what it is; the message names it.
    """
    base = default if default is not None else EnvConfig()
    if isinstance(config, Mapping):
        base = make_config(base, **config)
    elif isinstance(config, EnvConfig):
        base = config
    elif config is not None:
        raise ValueError(f"config={config!r}: an EnvConfig or a mapping of its fields is wanted")
    known = [f.name for f in fields(EnvConfig)]
    for name, value in changes.items():
        if name not in known:
            raise UnknownNameError("environment argument", name, sorted([*known, "library", "seed", "config"]))
        if name in _RANGES:
            changes[name] = _pair(name, value)
        elif name == "families":
            changes[name] = (value,) if isinstance(value, str) else tuple(value)
        elif name == "runtime":
            changes[name] = _runtime(base.runtime, value)
    return replace(base, **changes)


def _pair(name: str, value: Any) -> tuple[float, float]:
    """(low, high) of a range; one number stands for both."""
    if isinstance(value, int | float):
        return (value, value)
    if not isinstance(value, str) and isinstance(value, Iterable):
        ends = tuple(value)
        if len(ends) == 2 and all(isinstance(end, int | float) for end in ends):
            return ends
    raise ValueError(f"{name}={value!r}: a number or a pair (low, high) is wanted")


def _runtime(base: RuntimeConfig, value: Any) -> RuntimeConfig:
    """A `RuntimeConfig` itself, or `base` with the fields of a mapping changed."""
    if isinstance(value, RuntimeConfig):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"runtime={value!r}: a RuntimeConfig or a mapping of its fields is wanted")
    known = [f.name for f in fields(RuntimeConfig)]
    for name in value:
        if name not in known:
            raise UnknownNameError("field of runtime", name, known)
    return replace(base, **value)
