"""The manifest of a bundle: typed, strictly parsed; every fault has its own one-line message."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NoReturn

from pikv_runtime.contract import CONTRACT_HASH, CONTRACT_VERSION, GLOBAL_FEATURES, GROUP_FEATURES, Column
from pikv_runtime.control_views import VIEWS
from pikv_runtime.policy.network import ACTIVATIONS, MAX_LAYERS, MAX_WIDTH

SCHEMA = 1
FILES = ("README.md", "eval.json", "golden.safetensors", "policy.safetensors")
"""Every file of a bundle besides the manifest itself."""

Feature = tuple[str, str]


class BundleError(ValueError):
    """Why a bundle was refused, in one line."""


def _features(columns: tuple[Column, ...]) -> tuple[Feature, ...]:
    return tuple((c.name, c.unit) for c in columns)


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself."""

    name: str
    version: str
    """major.minor: major changes with the contract, minor with the weights."""
    view: str
    """Control view that reads the network's outputs."""
    num_groups: int | None
    """Groups it serves; null: any."""
    observation: int
    """Length of the observation."""
    layers: tuple[int, ...]
    """Widths of the hidden layers."""
    activation: Literal["tanh", "relu"]
    interval_s: float
    """Seconds between decisions in training."""
    objective_version: str
    provenance: dict[str, Any]
    """Commit, command, seeds, families seen, trace and profile ids."""
    files: dict[str, str]
    """SHA-256 of every other file."""
    schema: int = SCHEMA
    contract_version: str = CONTRACT_VERSION
    contract_hash: str = CONTRACT_HASH
    group_features: tuple[Feature, ...] = _features(GROUP_FEATURES)
    """Name and unit of every column, in order."""
    global_features: tuple[Feature, ...] = _features(GLOBAL_FEATURES)

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


def _is_count(low: int, high: int) -> Callable[[object], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


def _is_text(pattern: str) -> Callable[[object], bool]:
    return lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None


def _is_list(check: Callable[[object], bool], longest: int) -> Callable[[object], bool]:
    return lambda v: isinstance(v, list) and len(v) <= longest and all(map(check, v))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


def _is_feature(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _is_files(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text("[0-9a-f]{64}"), value.values()))


_WIDTH = _is_count(1, MAX_WIDTH)
_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "schema": (_is_count(1, SCHEMA), f"a number up to {SCHEMA}"),
    "name": (_is_text("[a-z0-9][a-z0-9_-]{0,63}"), "1 to 64 of a-z 0-9 _ -"),
    "version": (_is_text(r"\d{1,4}\.\d{1,4}"), "'major.minor'"),
    "contract_version": (_is_text(r"[\w.]{1,16}"), "a version"),
    "contract_hash": (_is_text("[0-9a-f]{16}"), "16 hexadecimal digits"),
    "group_features": (_is_list(_is_feature, 256), "a list of [name, unit]"),
    "global_features": (_is_list(_is_feature, 256), "a list of [name, unit]"),
    "view": (lambda v: isinstance(v, str) and v in VIEWS, f"one of {', '.join(VIEWS.names())}"),
    "num_groups": (lambda v: v is None or _WIDTH(v), f"null or 1..{MAX_WIDTH}"),
    "observation": (_is_count(1, 2**20), "a positive number"),
    "layers": (_is_list(_WIDTH, MAX_LAYERS - 1), f"up to {MAX_LAYERS - 1} widths of 1..{MAX_WIDTH}"),
    "activation": (lambda v: v in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    "interval_s": (_is_number, "positive seconds"),
    "objective_version": (_is_text(r".{1,32}"), "a version"),
    "provenance": (lambda v: isinstance(v, dict), "an object"),
    "files": (_is_files, "an object of names to SHA-256 (64 hexadecimal digits)"),
}
assert set(_CHECKS) == {f.name for f in fields(Manifest)}


def parse_manifest(text: str) -> Manifest:
    """Strictly; raises BundleError at the first fault."""
    data = parse_object("manifest.json", text)
    schema = data.get("schema")
    if _is_count(SCHEMA + 1, 10**9)(schema):
        raise BundleError(f"schema {schema} is newer than this runtime's {SCHEMA}: upgrade the runtime")
    for missing in sorted(_CHECKS.keys() - data.keys()):
        raise BundleError(f"manifest lacks field {missing!r}")
    for extra in sorted(data.keys() - _CHECKS.keys()):
        raise BundleError(f"manifest has unknown field {short(extra)}")
    for name, (check, allowed) in _CHECKS.items():
        if not check(data[name]):
            raise BundleError(f"manifest field {name!r} is {short(data[name])}: must be {allowed}")
    lists = {f: tuple(tuple(pair) for pair in data[f]) for f in ("group_features", "global_features")}
    return Manifest(**{**data, **lists, "layers": tuple(data["layers"])})


def check_contract(manifest: Manifest) -> None:
    """Raise BundleError unless the bundle was made for this contract, column by column."""
    if manifest.contract_hash != CONTRACT_HASH:
        raise BundleError(
            f"made for contract {manifest.contract_hash} (version {manifest.contract_version}), "
            f"this runtime has {CONTRACT_HASH} (version {CONTRACT_VERSION})"
        )
    for kind, told, own in (
        ("group", manifest.group_features, _features(GROUP_FEATURES)),
        ("global", manifest.global_features, _features(GLOBAL_FEATURES)),
    ):
        if len(told) != len(own):
            raise BundleError(f"{len(told)} {kind} features, this runtime has {len(own)}")
        for i, (theirs, ours) in enumerate(zip(told, own, strict=True)):
            if theirs != ours:
                told_as, unit = map(short, theirs)
                raise BundleError(
                    f"{kind} feature {i} is {told_as} in {unit}, this runtime has {ours[0]!r} in {ours[1]!r}"
                )


def parse_object(name: str, text: str) -> dict[str, Any]:
    """A JSON object without repeated keys, NaN or infinity; raises BundleError."""

    def refuse_constant(constant: str) -> NoReturn:
        raise BundleError(f"{name} holds {constant}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict[str, Any]()
        for key, value in pairs:
            if key in found:
                raise BundleError(f"{name} has field {short(key)} twice")
            found[key] = value
        return found

    try:
        data = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except BundleError:
        raise
    except RecursionError:
        raise BundleError(f"{name} is not JSON: nested too deeply") from None
    except ValueError as error:
        raise BundleError(f"{name} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BundleError(f"{name} holds {short(data)}: must be an object")
    return data


def short(value: object) -> str:
    """`repr` of at most 60 characters, for messages about what somebody else wrote."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
