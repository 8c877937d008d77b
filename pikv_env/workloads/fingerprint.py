"""What a family is, whatever it is called: equal fingerprints, equal contents, arrivals and sharing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from pikv_env.workloads.families import Family, Phase
from pikv_env.workloads.replay import Replay

_RULES: dict[str, tuple[str, ...]] = {
    "document": ("popularity",),
    "tenant": ("tenants",),
    "growing": ("tenants", "growth"),
}
"""Fields of a family that its sharing rule reads; the others change nothing, so they count for nothing."""


def fingerprint(family: Family) -> str:
    """16 hex digits of a family's contents, arrivals and sharing.

    Name, split, texts, classes and the share of batch requests do not count: a copy of a training family that
    changes only these is no other family. A replayed trace counts by its records, not by its path, nor by the scale
    or jitter at which it is read: who learned from a trace has seen it.

    Raises:
        MooncakeError: the trace of a replaying family cannot be read.
    """
    told = {
        "phases": _phases(family.phases),
        "arrivals": _plain(family.arrivals),
        "sharing": family.sharing,
        **{name: _plain(getattr(family, name)) for name in _RULES.get(family.sharing, ())},
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _phases(phases: tuple[Phase, ...]) -> list[Any]:
    """Phases with weights, shares and rates as shares of their sums: only their proportions act.

    A phase that goes on as the one before is one with it.
    """
    phases = _joined(phases)
    shares, rates = sum(p.share for p in phases), sum(p.rate for p in phases)
    return [[_round(p.share / shares), _round(p.rate / rates), _mix(p)] for p in phases]


def _joined(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """Phases of which no two neighbours have the same mix and rate."""
    joined = [phases[0]]
    for phase in phases[1:]:
        last = joined[-1]
        if phase.rate == last.rate and _mix(phase) == _mix(last):
            joined[-1] = replace(last, share=last.share + phase.share)
        else:
            joined.append(phase)
    return tuple(joined)


def _mix(phase: Phase) -> dict[str, float]:
    """Kinds and their shares."""
    total = sum(phase.kinds.values())
    return {kind: _round(weight / total) for kind, weight in phase.kinds.items()}


def _plain(value: Any) -> Any:
    """A value as JSON can write it."""
    if isinstance(value, Replay):
        return {"records": records_digest(value)}
    if is_dataclass(value):
        return {"is": type(value).__name__} | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return _round(value) if isinstance(value, int | float) else repr(value)


def records_digest(trace: Replay) -> str:
    """Hash of a replayed trace's records."""
    records = [[r.timestamp_ms, r.input_length, r.output_length, r.hash_ids] for r in trace.records()]
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()


def _round(value: float) -> float:
    return round(float(value), 9)
