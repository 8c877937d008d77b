"""Requests, service classes and workloads: what is asked of the runtime, and when."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.contract import CLASSES


@dataclass(frozen=True)
class ServiceClass:
    """A class of service: weights and service-level objectives of its requests."""

    name: str
    weight: float = 1.0
    """c_i: weight of the request's latency."""
    slo_ttft_s: float = 2.0
    """Stated time to first token, seconds of the clock in use."""
    slo_tpot_s: float = 0.1
    """Stated time per output token, seconds."""
    fidelity_weight: float = 1.0
    """Weight of the request's fidelity loss."""


INTERACTIVE = ServiceClass("interactive", weight=1.0, slo_ttft_s=2.0, slo_tpot_s=0.10, fidelity_weight=1.0)
BATCH = ServiceClass("batch", weight=0.3, slo_ttft_s=15.0, slo_tpot_s=0.30, fidelity_weight=0.5)


@dataclass(frozen=True)
class Request:
    """One request. `hash_ids[j]` names the j-th full block of prompt and output on the exact continuation.

    Two requests share a prefix exactly as far as their `hash_ids` agree from the start; equal ids promise equal
    tokens. `content` is the row of the attention-trace library that the request replays (-1: none).
    """

    request_id: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: NDArray[np.int64]
    class_id: int = 0
    content: int = -1
    prompt_ids: NDArray[np.int32] | None = field(default=None, repr=False)
    """Token ids (prompt_tokens,); None where only the price of the request matters."""
    exact_ids: NDArray[np.int32] | None = field(default=None, repr=False)
    """Exact continuation (output_tokens,), along which audited requests are teacher-forced."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(
                f"request {self.request_id}: prompt_tokens={self.prompt_tokens} and "
                f"output_tokens={self.output_tokens} must both be at least 1"
            )
        if not 0 <= self.arrival_s < math.inf:
            raise ValueError(f"request {self.request_id}: arrival_s={self.arrival_s}, must be finite and not negative")
        if not 0 <= self.class_id < CLASSES:
            raise ValueError(f"request {self.request_id}: class_id={self.class_id}, allowed 0..{CLASSES - 1}")
        if self.prompt_ids is not None and len(self.prompt_ids) != self.prompt_tokens:
            raise ValueError(
                f"request {self.request_id}: {len(self.prompt_ids)} prompt ids for prompt_tokens={self.prompt_tokens}"
            )


@runtime_checkable
class Workload(Protocol):
    """A reproducible stream of requests, ordered by arrival."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    @property
    def horizon_s(self) -> float:
        """Arrivals stop here, seconds."""
        ...

    @property
    def classes(self) -> tuple[ServiceClass, ...]:
        """Classes of service, by the `class_id` of requests."""
        ...

    @property
    def requests(self) -> Sequence[Request]:
        """All requests, ordered by `arrival_s`."""
        ...


@dataclass(frozen=True)
class RequestList:
    """The plainest workload: a list of requests."""

    name: str
    horizon_s: float
    requests: tuple[Request, ...]
    classes: tuple[ServiceClass, ...] = (INTERACTIVE, BATCH)
    family: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        times = [r.arrival_s for r in self.requests]
        if times != sorted(times):
            raise ValueError(f"workload {self.name!r}: requests must be ordered by arrival_s")
        if len(self.classes) != CLASSES:
            raise ValueError(f"workload {self.name!r}: {len(self.classes)} classes, the contract has {CLASSES}")


def distinct_blocks(requests: Sequence[Request]) -> int:
    """Blocks that a cache without a cap could hold in the end: distinct hashes of all requests."""
    if not requests:
        return 0
    hashes = np.unique(np.concatenate([r.hash_ids for r in requests]))
    return int(np.count_nonzero(hashes))


def chain_hashes(token_ids: NDArray[np.int32], page_tokens: int, salts: Sequence[int] = ()) -> NDArray[np.int64]:
    """Hash-chained ids of the full blocks of `token_ids`, each bound to all tokens and salts before it.

    `salts[j]` (0 beyond its end) keeps block j and all later ones apart from equal text of another tenant, as the
    cache salts of serving engines do. SHA-256, because a weak block hash would void that isolation.
    """
    parent = b"pikv"
    hashes = np.zeros(len(token_ids) // page_tokens, np.int64)
    tokens = np.ascontiguousarray(token_ids, dtype=np.int32)
    for j in range(len(hashes)):
        salt = int(salts[j]) if j < len(salts) else 0
        block = tokens[j * page_tokens : (j + 1) * page_tokens].tobytes()
        parent = hashlib.sha256(parent + salt.to_bytes(8, "little", signed=True) + block).digest()
        hashes[j] = int.from_bytes(parent[:8], "little") >> 1
    return hashes


def is_audited(request_id: int, seed: int, share: float) -> bool:
    """Whether a request's exact KV is shadowed to measure fidelity; decided by hash, told to nobody."""
    digest = hashlib.sha256(f"audit:{seed}:{request_id}".encode()).digest()
    return int.from_bytes(digest[:4], "little") < share * 2**32
