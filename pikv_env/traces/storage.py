"""One safetensors file: the arrays as tensors, everything else as JSON in the header. Nothing executable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pikv_env.traces.validation import TraceError
from pikv_env.whole_file import write_whole

FORMAT = "pikv-trace-library"
VERSION = "1"


def write_file(path: Path, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Write arrays and metadata; the file appears whole or not at all."""
    header = {"format": FORMAT, "version": VERSION, "meta": json.dumps(dict(meta), sort_keys=True)}
    payload = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=header)
    write_whole(path, payload)


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read arrays and metadata; raises TraceError where the file is missing, cut, or of another kind."""
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise TraceError(f"{path}: format {header.get('format')!r}, expected {FORMAT!r}")
            if header.get("version") != VERSION:
                raise TraceError(f"{path}: version {header.get('version')!r}, expected {VERSION!r}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise TraceError(f"{path}: not a whole safetensors file ({error})") from error
    try:
        meta = json.loads(header.get("meta", ""))
    except json.JSONDecodeError as error:
        raise TraceError(f"{path}: metadata is not JSON ({error})") from error
    if not isinstance(meta, dict):
        raise TraceError(f"{path}: metadata is a {type(meta).__name__}, expected an object")
    return arrays, meta
