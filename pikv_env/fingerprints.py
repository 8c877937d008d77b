"""Fingerprints: whether two processes, or two days, mean the same traces, workload and pool. SHA-256, 16 digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from pikv_env.pool import WorkloadPool
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.requests import RequestList

_LIBRARIES: WeakKeyDictionary[TraceLibrary, str] = WeakKeyDictionary()
_POOLS: WeakKeyDictionary[WorkloadPool, str] = WeakKeyDictionary()


def digest(parts: Iterable[Any]) -> str:
    """Of arrays, dataclasses, and what JSON can hold, in order; types and shapes count."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype.str}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
        else:
            plain = asdict(part) if is_dataclass(part) and not isinstance(part, type) else part
            found.update(json.dumps(plain, sort_keys=True).encode())
        found.update(b"\0")
    return found.hexdigest()[:16]


def library_fingerprint(library: TraceLibrary) -> str:
    """Of everything that a library replays."""
    if library not in _LIBRARIES:
        names, arrays = zip(*sorted(library.arrays().items()), strict=True)
        head = [list(library.families), library.page_tokens, library.observe_tokens, list(names)]
        _LIBRARIES[library] = digest([head, *arrays])
    return _LIBRARIES[library]


def workload_fingerprint(workload: RequestList) -> str:
    """Of all requests: when they come, how long they are, what they share, what they replay, how they are served."""
    numbers = [
        (r.request_id, r.arrival_s, r.prompt_tokens, r.output_tokens, r.class_id, r.content) for r in workload.requests
    ]
    hashes = [np.asarray(r.hash_ids) for r in workload.requests]
    return digest([workload.seed, [asdict(c) for c in workload.classes], np.array(numbers, np.float64), *hashes])


def pool_fingerprint(pool: WorkloadPool) -> str:
    """Of all that decides how episodes of a pool go: traces, workloads, prices, page bytes, classes, denominators."""
    if pool not in _POOLS:
        workloads = [workload_fingerprint(p.workload) for p in pool.prepared]
        numbers = [(p.reference.latency, p.reference.duration_s, p.reference.audited) for p in pool.prepared]
        caps = [(p.working_set_bytes, float(p.floor_bytes)) for p in pool.prepared]
        parts = [library_fingerprint(pool.library), workloads, np.array(numbers), np.array(caps)]
        served = [np.asarray(pool.prices), pool.shape, [asdict(c) for c in pool.classes]]
        _POOLS[pool] = digest([*parts, *served, pool.config.runtime, pool.config.ranks, pool.config.host])
    return _POOLS[pool]
