"""Families of one's own, from files: TOML or JSON with the fields of `Family`, or a trace in the Mooncake line format.

    id = "gateway"
    phases = [{kinds = {code = 1.0, facts = 0.5}}]
    arrivals = {process = "gamma", cv = 2.0}
    popularity = {zipf = 1.1, instances = 64, lifetime_s = 300.0}

Files are parsed as data; nothing in them is executed. What a file leaves out has the default of `Family`; the split is
`train` unless the file says otherwise.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from pikv_env.workloads.arrivals import ARRIVALS, ArrivalProcess
from pikv_env.workloads.content import KINDS, PROMPT_RANGE
from pikv_env.workloads.families import FAMILIES, Family, Growth, Phase, Popularity, Tenants
from pikv_env.workloads.mooncake import BLOCK_TOKENS, MooncakeError, MooncakeRecord, read_mooncake
from pikv_env.workloads.replay import BUILTIN, Replay, Trace
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.requests import ServiceClass

FILES = (".toml", ".json")
TRACE = "trace:"
TRACE_KINDS = ("code", "prose", "facts", "copy")
"""Contents of a family made from a trace alone: those of training families, so that it spoils no test."""
PARTS: dict[str, type] = {"popularity": Popularity, "tenants": Tenants, "growth": Growth}


class FamilyFileError(ValueError):
    """A file that is no family; the message names file, field and reason."""


def named_families(entries: Iterable[str]) -> tuple[str, ...]:
    """Names of families, where an entry may also be a file of one's own, which is registered under its id.

    Args:
        entries: Names in `FAMILIES`, paths that end in .toml or .json, or `trace:PATH` of a Mooncake trace.

    Raises:
        UnknownNameError: no such family.
        FamilyFileError: a file is missing, damaged or no family, or its id is that of another family.
        MooncakeError: a trace is missing or damaged.
    """
    return tuple(dict.fromkeys(_named(entry) for entry in entries))


def _named(entry: str) -> str:
    if entry.startswith(TRACE):
        return register(family_of_trace(Path(entry.removeprefix(TRACE))), entry)
    if entry.endswith(FILES):
        return register(load_family(Path(entry)), entry)
    if entry not in FAMILIES:
        known = [*FAMILIES, "FILE.toml", "FILE.json", f"{TRACE}FILE.jsonl"]
        raise UnknownNameError("family", entry, known)
    return entry


def register(family: Family, where: str) -> str:
    """Add a family of one's own under its id, once; the same again is welcome. Returns the id."""
    if family.id in FAMILIES and FAMILIES[family.id] != family:
        raise FamilyFileError(f"{where}: id={family.id!r} is the name of another family: choose one that is free")
    if family.id not in FAMILIES:
        FAMILIES.add(family.id, family)
    return family.id


def load_family(path: Path) -> Family:
    """The family of a TOML or JSON file; paths of traces in it are relative to its folder.

    Raises:
        FamilyFileError: see there.
        MooncakeError: the trace that it replays cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        told: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise FamilyFileError(f"{path}: cannot be read as {path.suffix[1:].upper()}: {reason}") from None
    return make_family(told, str(path), path.parent)


def make_family(told: Any, where: str, folder: Path) -> Family:
    """A family from plain values as a file holds them; `where` begins every error."""
    values = dict(_table(told, where))
    values = {"split": "train", "description": f"of {where}"} | values
    for name, read in (("arrivals", _arrivals), ("phases", _phases), ("classes", _classes)):
        if name in values:
            values[name] = read(values[name], f"{where}: {name}", folder)
    for name, part in PARTS.items():
        if name in values:
            values[name] = _made(part, values[name], f"{where}: {name}")
    family = _made(Family, values, where)
    for kind in family.kinds:
        if kind not in KINDS:
            raise FamilyFileError(f"{where}: phases: {UnknownNameError('content kind', kind, sorted(KINDS))}")
    if isinstance(family.arrivals, Replay):
        family.arrivals.records()  # now, not at the first episode
    return family


def family_of_trace(path: Path) -> Family:
    """A training family that replays a trace: times, lengths and shared blocks, over contents of training families.

    Tokens of a block are read off the trace, and so is the scale: the power of two at which nine of ten prompts are
    within the lengths that are recorded.

    Raises:
        MooncakeError: the trace cannot be read, or its ids are no blocks.
    """
    records = read_mooncake(path)
    block_tokens = blocks_of(records)
    if block_tokens is None:
        raise MooncakeError(f"{path}: no block size fits all prompts and their hash_ids; convert it (`pikv convert`)")
    longest = float(np.quantile([r.input_length for r in records], 0.9))
    scale = 2.0 ** max(0, math.ceil(math.log2(longest / PROMPT_RANGE[1])))
    trace = Trace(path.resolve(), token_scale=scale, block_tokens=block_tokens)
    trace.records()  # checked as prefixes
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return Family(
        id=name,
        split="train",
        description=f"times, lengths and blocks of {path.name}; {scale:g} of its tokens for one",
        phases=(Phase(dict.fromkeys(TRACE_KINDS, 1.0)),),
        arrivals=trace,
        source=f"times, lengths and blocks of {path.name}",
        licence="of the trace",
        sharing="trace",
    )


def blocks_of(records: Iterable[MooncakeRecord]) -> int | None:
    """Tokens of a block of a trace: 512 if that fits, else the least power of two that does; None: none does."""
    pairs = [(r.input_length, len(r.hash_ids)) for r in records]
    sizes = (BLOCK_TOKENS, *(2**k for k in range(21)))
    return next((size for size in sizes if all(-(-tokens // size) == count for tokens, count in pairs)), None)


def _arrivals(told: Any, where: str, folder: Path) -> ArrivalProcess:
    """An arrival process from its name and parameters; one inside it likewise."""
    values = dict(_table(told, where))
    name = values.pop("process", None)
    if not isinstance(name, str) or name not in ARRIVALS:
        raise FamilyFileError(f"{where}: {UnknownNameError('process', str(name), ARRIVALS.names())}")
    for key, value in values.items():
        if isinstance(value, Mapping):
            values[key] = _arrivals(value, f"{where}.{key}", folder)
    path = values.get("path")
    if isinstance(path, str) and not path.startswith(BUILTIN):
        values["path"] = str(folder / path)
    return _made(ARRIVALS[name], values, where)


def _phases(told: Any, where: str, folder: Path) -> tuple[Phase, ...]:
    return tuple(_made(Phase, one, f"{where}[{k}]") for k, one in enumerate(_list(told, where)))


def _classes(told: Any, where: str, folder: Path) -> tuple[ServiceClass, ...]:
    return tuple(_made(ServiceClass, one, f"{where}[{k}]") for k, one in enumerate(_list(told, where)))


def _made(kind: type, told: Any, where: str) -> Any:
    """An instance of a dataclass from a table of its fields, each of the type that it is declared with."""
    values = _table(told, where)
    known, hints = {f.name: f for f in fields(kind)}, get_type_hints(kind)
    for name, value in values.items():
        if name not in known:
            raise FamilyFileError(f"{where}: {UnknownNameError('field', name, list(known))}")
        values = values | {name: _read(value, hints[name], f"{where}: {name}")}
    for name, one in known.items():
        if name not in values and one.default is MISSING and one.default_factory is MISSING:
            raise FamilyFileError(f"{where}: the field {name!r} is missing")
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise FamilyFileError(f"{where}: {error}") from None


def _read(value: Any, hint: Any, where: str) -> Any:
    """A plain value as a field's type wants it: lists become tuples, whole numbers may stand for others."""
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_read(one, get_args(hint)[0], where) for one in value)
    if get_origin(hint) is Mapping:
        table = _table(value, where)
        return {key: _read(one, get_args(hint)[1], f"{where}.{key}") for key, one in table.items()}
    if hint in (float, int) and (
        isinstance(value, bool) or not isinstance(value, hint if hint is int else int | float)
    ):
        raise FamilyFileError(f"{where}={value!r}: must be a {'whole ' if hint is int else ''}number")
    if hint is float and not math.isfinite(value):
        raise FamilyFileError(f"{where}={value!r}: must be finite")
    if hint is str and not isinstance(value, str):
        raise FamilyFileError(f"{where}={value!r}: must be text")
    return value


def _table(told: Any, where: str) -> dict[str, Any]:
    if not isinstance(told, Mapping):
        raise FamilyFileError(f"{where}: a table of fields is wanted, not {type(told).__name__}")
    return dict(told)


def _list(told: Any, where: str) -> list[Any]:
    if not isinstance(told, list):
        raise FamilyFileError(f"{where}: a list of tables is wanted, not {type(told).__name__}")
    return told
