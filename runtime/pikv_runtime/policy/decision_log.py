"""The audit trail: which decision was made on what telemetry, by whom, at which cost; as JSON lines.

The first line is a header: format, contract, who decides, its fallback and limits, the share that is sampled. Every
other line is one decision: `index`, `source` (`policy` or `fallback`), `trouble` (what the guard found wrong, if
anything), `cost_us`, telemetry and control. Numbers are written so that reading them gives the same float32 bits; what
JSON cannot say is `null` (NaN), `"inf"` and `"-inf"`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pikv_runtime.contract import (
    CONTRACT_HASH,
    Array,
    Control,
    Telemetry,
    check_shapes,
    clip_control,
)
from pikv_runtime.policy.base import Policy

FORMAT = "pikv-decisions/1"
_SPECIAL = {"inf": math.inf, "-inf": -math.inf, None: math.nan}


class DecisionLogError(ValueError):
    """A log that cannot be read, or cannot be replayed here; the message says why."""


@dataclass(frozen=True)
class LogHeader:
    """Who decided, and how much of it was kept."""

    policy: str
    """A spec, or the folder of a bundle."""
    manifest: str = ""
    """SHA-256 of the bundle's manifest; empty for a heuristic."""
    runner: str = ""
    fallback: str = ""
    """Spec of the heuristic behind the guard; empty without a guard."""
    share: float = 1.0
    """Share of decisions that are kept, chosen by hash of their number."""
    contract: str = CONTRACT_HASH


@dataclass(frozen=True)
class Decision:
    """One line of a log."""

    index: int
    source: str
    trouble: str | None
    cost_us: float
    telemetry: Telemetry
    control: Control


def header_of(policy: Policy, spec: str, share: float = 1.0) -> LogHeader:
    """The header of a log of `policy`, loaded from `spec`."""
    fallback = getattr(policy, "fallback", None)
    inner: Any = getattr(policy, "policy", policy)
    bundle = getattr(inner, "bundle", None)
    found = LogHeader(spec, fallback=getattr(fallback, "name", ""), share=share)
    if bundle is None:
        return found
    return replace(found, manifest=manifest_digest(bundle.path), runner=inner.runner.name)


def manifest_digest(bundle: Path) -> str:
    """SHA-256 of a bundle's manifest, which names the hashes of all else."""
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


class DecisionLog:
    """Writes a log, line by line.

    Raises:
        FileExistsError: There is a file already: what is on record is not overwritten.
    """

    def __init__(self, path: str | os.PathLike[str], header: LogHeader) -> None:
        if not 0 < header.share <= 1:
            raise ValueError(f"share={header.share}: must be more than 0, at most 1")
        self.path, self.header = Path(path), header
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO | None = self.path.open("x", encoding="utf-8", buffering=1)
        self._file.write(json.dumps({"format": FORMAT, **vars(header)}) + "\n")

    def write(self, decision: Decision) -> None:
        """Append a decision."""
        if self._file is None:
            raise ValueError(f"{self.path}: the log is closed")
        told, control = decision.telemetry, decision.control
        line = {
            "index": decision.index,
            "source": decision.source,
            "trouble": decision.trouble,
            "cost_us": round(decision.cost_us, 1),
            "telemetry": {"groups": _numbers(told.groups), "globals": _numbers(told.globals)},
            "control": {"groups": _numbers(control.groups), "globals": _numbers(control.globals)},
        }
        self._file.write(json.dumps(line, allow_nan=False) + "\n")

    def close(self) -> None:
        """End the log."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Logged:
    """A policy whose decisions are kept in a log. Writing is not part of the cost that a line states.

    What is logged is what comes into force: clipped to the control's ranges. What is passed on is not: whoever enforces
    it clips, and counts.
    """

    def __init__(self, policy: Policy, log: DecisionLog) -> None:
        self.inner, self.log, self.index = policy, log, 0

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "log", "index"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        started = time.perf_counter_ns()
        out = self.inner.decide(telemetry, out)
        cost_us = (time.perf_counter_ns() - started) / 1000
        if is_sampled(self.index, self.log.header.share):
            legal = out.copy()
            clip_control(legal)
            source = "fallback" if getattr(self.inner, "engaged", False) else "policy"
            trouble = getattr(self.inner, "trouble", None)
            self.log.write(Decision(self.index, source, trouble, cost_us, telemetry, legal))
        self.index += 1
        return out


def is_sampled(index: int, share: float) -> bool:
    """Whether decision `index` is kept: by hash, so that no rhythm of the load can hide from it."""
    digest = hashlib.sha256(f"decision:{index}".encode()).digest()
    return int.from_bytes(digest[:4], "little") < share * 2**32


def read_header(path: str | os.PathLike[str]) -> LogHeader:
    """The header of a log.

    Raises:
        DecisionLogError: It is no log, or one of another contract.
    """
    with Path(path).open(encoding="utf-8") as file:
        return _header(Path(path), file.readline())


def read_decisions(path: str | os.PathLike[str]) -> Iterator[Decision]:
    """The decisions of a log, in order.

    Raises:
        DecisionLogError: It is no log, or one of another contract; names the line.
    """
    with Path(path).open(encoding="utf-8") as file:
        _header(Path(path), file.readline())
        for number, line in enumerate(file, start=2):
            try:
                yield _decision(json.loads(line))
            except (KeyError, TypeError, ValueError) as error:
                reason = f"{error} is missing" if isinstance(error, KeyError) else error
                raise DecisionLogError(f"{path}, line {number}: {reason}") from None


def _header(path: Path, line: str) -> LogHeader:
    try:
        told = json.loads(line)
        if told.pop("format") != FORMAT:
            raise ValueError
        header = LogHeader(**told)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DecisionLogError(f"{path}: no decision log of format {FORMAT!r}") from None
    if header.contract != CONTRACT_HASH:
        raise DecisionLogError(f"{path}: of contract {header.contract!r}, this runtime has {CONTRACT_HASH!r}")
    return header


def _decision(row: dict[str, Any]) -> Decision:
    told = Telemetry(*(_array(row["telemetry"][part]) for part in ("groups", "globals")))
    control = Control(*(_array(row["control"][part]) for part in ("groups", "globals")))
    check_shapes(told, control)
    return Decision(int(row["index"]), str(row["source"]), row["trouble"], float(row["cost_us"]), told, control)


def _numbers(values: Array) -> list[Any]:
    """Nested lists whose numbers are float32 exactly."""
    return values.tolist() if np.isfinite(values).all() else [_spell(v) for v in values.tolist()]


def _spell(value: Any) -> Any:
    if isinstance(value, list):
        return [_spell(v) for v in value]
    return value if math.isfinite(value) else None if math.isnan(value) else str(value)


def _array(values: Any) -> Array:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(v) for v in value]
        return _SPECIAL[value] if value is None or isinstance(value, str) else value

    return np.array(plain(values), np.float32)
