"""`TraceLibrary`: what the attention of an exact run did, for every content of a set of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.arrays import CODECS, DTYPES, TraceArrays
from pikv_env.traces.storage import read_file, write_file
from pikv_env.traces.validation import TraceError, check_library, check_shapes
from pikv_runtime.registry import UnknownNameError

_PADDING = {"token_ids": -1, "tags": -1}


@dataclass(frozen=True, eq=False)
class TraceLibrary(TraceArrays):
    """Recorded attention, checked; rows can be chosen, libraries merged, saved and loaded."""

    def __post_init__(self) -> None:
        for name, dtype in DTYPES.items():
            value = getattr(self, name)
            if value is not None:
                array = np.ascontiguousarray(value, dtype=dtype).view()
                array.flags.writeable = False
                object.__setattr__(self, name, array)
        object.__setattr__(self, "families", tuple(self.families))
        check_shapes(self)

    def rows_of(self, family: str) -> NDArray[np.int64]:
        """Row numbers of one family; raises UnknownNameError where the library lacks it."""
        if family not in self.families:
            raise UnknownNameError("trace family", family, sorted(self.families))
        return np.flatnonzero(self.family_of == self.families.index(family))

    def subset(self, families: Sequence[str]) -> TraceLibrary:
        """The rows of some families, in library order; `families` takes the given order."""
        names = tuple(dict.fromkeys(families))
        rows = np.sort(np.concatenate([np.zeros(0, np.int64), *(self.rows_of(name) for name in names)]))
        renumber = np.array([names.index(f) if f in names else -1 for f in self.families], np.int32)
        arrays: dict[str, Any] = {name: array[rows] for name, array in self.arrays().items()}
        arrays["family_of"] = renumber[arrays["family_of"]]
        return replace(self, families=names, **arrays)

    def arrays(self) -> dict[str, Any]:
        """The arrays by field name; `token_ids` only where present."""
        values = {name: getattr(self, name) for name in DTYPES}
        return {name: value for name, value in values.items() if value is not None}

    def check(self) -> TraceLibrary:
        """Validate values, not only shapes, and return self; raises TraceError with the first reason."""
        check_library(self)
        return self

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically: a reader sees the old file or the whole new one."""
        meta = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in DTYPES}
        write_file(Path(path), self.arrays(), {**meta, "codecs": CODECS, "provenance": dict(self.provenance)})

    @classmethod
    def load(cls, path: str | Path) -> TraceLibrary:
        """Read and fully validate a file; raises TraceError naming the file and the reason."""
        arrays: dict[str, Any]
        arrays, meta = read_file(Path(path))
        try:
            if tuple(meta.pop("codecs", ())) != CODECS:
                raise TraceError(f"codecs differ from {CODECS}")
            _check_dtypes(arrays)
            return cls(**meta, **arrays).check()
        except (TypeError, ValueError) as error:
            raise TraceError(f"{path}: {error}") from error

    @staticmethod
    def merge(libraries: Sequence[TraceLibrary]) -> TraceLibrary:
        """Join libraries of one model; P, O, T and PB are padded, group numbers stay apart."""
        if not libraries:
            raise ValueError("merge of 0 libraries: at least 1 is needed")
        first = libraries[0]
        for name in ("page_tokens", "observe_tokens", "layers", "experts", "model"):
            values = {getattr(library, name) for library in libraries}
            if len(values) > 1:
                raise TraceError(f"libraries to merge differ in {name}: {sorted(values)}")
        if len({library.token_ids is None for library in libraries}) > 1:
            raise TraceError("libraries to merge must all have token_ids, or none")
        names = tuple(dict.fromkeys(f for library in libraries for f in library.families))
        offsets = _offsets(libraries)
        parts = [_renumbered(library, names, offset) for library, offset in zip(libraries, offsets, strict=True)]
        arrays: dict[str, Any] = {
            name: _joined([part[name] for part in parts], _PADDING.get(name, 0)) for name in parts[0]
        }
        provenance = {"merged": [dict(library.provenance) for library in libraries]}
        return replace(first, families=names, provenance=provenance, **arrays)


def _check_dtypes(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a file whose numbers would be cast silently (floats as lengths, integers as mass)."""
    for name, array in arrays.items():
        if name not in DTYPES:
            raise UnknownNameError("trace array", name, sorted(DTYPES))
        if array.dtype.kind != np.dtype(DTYPES[name]).kind:
            raise TraceError(f"{name} is {array.dtype}, expected {np.dtype(DTYPES[name])}")


def _offsets(libraries: Sequence[TraceLibrary]) -> list[int]:
    """The number added to each library's groups so that none coincide."""
    sizes = [int(library.group_of.max(initial=-1)) + 1 for library in libraries]
    return [sum(sizes[:i]) for i in range(len(sizes))]


def _renumbered(library: TraceLibrary, names: tuple[str, ...], offset: int) -> dict[str, Any]:
    """The arrays of one library with family and group numbers of the merged one."""
    renumber = np.array([names.index(f) for f in library.families], np.int32)
    arrays = library.arrays()
    arrays["family_of"] = renumber[library.family_of]
    arrays["group_of"] = library.group_of + np.int32(offset)
    return arrays


def _joined(parts: list[NDArray[Any]], padding: int) -> NDArray[Any]:
    """Concatenate along the first axis after padding every other axis to the longest part."""
    shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int) if parts[0].ndim > 1 else []
    padded = []
    for part in parts:
        widths = [(0, 0)] + [(0, int(size) - have) for size, have in zip(shape, part.shape[1:], strict=True)]
        padded.append(np.pad(part, widths, constant_values=padding))
    return np.concatenate(padded)
