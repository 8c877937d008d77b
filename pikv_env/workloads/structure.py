"""What stays of a family when its numbers are left out: by it a near copy is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pikv_env.workloads.families import Family
from pikv_env.workloads.fingerprint import records_digest
from pikv_env.workloads.replay import Replay, Trace

LEAST_SHARE = 0.05
"""A content kind that fewer requests have is no part of the structure: a pinch of another kind makes no new family."""


def structure(family: Family) -> str:
    """16 hex digits of a family's content kinds, kind of arrivals and sharing rule.

    Families of equal structure differ at most in numbers: rates, weights of the mix, exponents, lifetimes, lengths,
    counts, the number of phases. One of them is a *near copy* of the other. Names, split and classes do not count.
    A family that replays a trace, with its lengths and blocks, is its records and nothing else: two traces are two
    families, and one trace with other contents is one.

    Raises:
        MooncakeError: the trace of a replaying family cannot be read.
    """
    told: dict[str, Any] = {"kinds": _kinds(family), "arrivals": _skeleton(family.arrivals), "sharing": family.sharing}
    if isinstance(family.arrivals, Trace):
        told = {"trace": records_digest(family.arrivals)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _kinds(family: Family) -> list[str]:
    """Content kinds of at least `LEAST_SHARE` of the requests, sorted."""
    requests: dict[str, float] = {}
    for phase in family.phases:
        total = sum(phase.kinds.values())
        for kind, weight in phase.kinds.items():
            requests[kind] = requests.get(kind, 0.0) + phase.share * phase.rate * weight / total
    everything = sum(requests.values())
    return sorted(kind for kind, count in requests.items() if count >= LEAST_SHARE * everything)


def _skeleton(value: Any) -> Any:
    """Types of an arrival process and of those inside it; a trace's records."""
    if isinstance(value, Replay):
        return {"records": records_digest(value)}
    if is_dataclass(value):
        inner = {f.name: _skeleton(getattr(value, f.name)) for f in fields(value)}
        return {"is": type(value).__name__} | {name: one for name, one in inner.items() if one is not None}
    if isinstance(value, Mapping):
        return {str(key): _skeleton(one) for key, one in value.items()}
    return None
