"""What a trace library holds: its arrays by name, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CODECS = ("native", "bf16", "int8", "int4")  # order of the last axis of `error`: down the ladder

DTYPES: dict[str, type[np.generic]] = {
    "prompt_tokens": np.int32,
    "output_tokens": np.int32,
    "family_of": np.int32,
    "group_of": np.int32,
    "turn_of": np.int32,
    "shared_tokens": np.int32,
    "chain": np.int64,
    "tags": np.int8,
    "mass": np.float32,
    "score": np.float32,
    "gate": np.float32,
    "error": np.float32,
    "token_ids": np.int32,
}


@dataclass(frozen=True, eq=False)
class TraceArrays:
    """Recorded attention of C contents: L layers, E experts, P pages, O observations, T tokens, PB blocks.

    Observation o of a content is its decode step t = o * observe_tokens; the context then holds
    prompt_tokens + t tokens and the token being decoded. Arrays are read-only, so that views of them may be
    handed out.
    """

    families: tuple[str, ...]
    """Names that `family_of` indexes."""
    page_tokens: int
    observe_tokens: int
    layers: int
    experts: int
    model: str
    """Fingerprint of the recorded model."""
    prompt_tokens: NDArray[np.int32]
    """(C,)"""
    output_tokens: NDArray[np.int32]
    """(C,) length of the exact continuation."""
    family_of: NDArray[np.int32]
    """(C,) index into `families`."""
    group_of: NDArray[np.int32]
    """(C,) document or dialogue inside the family."""
    turn_of: NDArray[np.int32]
    """(C,) turn of a dialogue; 0 where the group is a document."""
    shared_tokens: NDArray[np.int32]
    """(C,) length of the prefix shared with the group's other rows, or with the previous turn."""
    chain: NDArray[np.int64]
    """(C, PB) chain hashes of the full blocks of prompt and output, then zeros."""
    tags: NDArray[np.int8]
    """(C, L, P) majority expert of a page, then -1."""
    mass: NDArray[np.float32]
    """(C, O, L, P) exact attention mass of a page; sums to 1 over the context."""
    score: NDArray[np.float32]
    """(C, O, L, P) centroid router score of a page; any scale."""
    gate: NDArray[np.float32]
    """(C, O, L, E) predicted gate distribution of the observed token; sums to 1."""
    error: NDArray[np.float32]
    """(C, L, P, 4) relative attention error of a page under each codec of the ladder; native is 0."""
    token_ids: NDArray[np.int32] | None = None
    """(C, T) prompt and exact continuation, then -1; None where only prices matter."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the traces come from: JSON values."""

    def __len__(self) -> int:
        """Number of contents, C."""
        return len(self.prompt_tokens)

    @property
    def total_tokens(self) -> NDArray[np.int32]:
        """(C,) prompt and output tokens."""
        return self.prompt_tokens + self.output_tokens

    @property
    def num_blocks(self) -> NDArray[np.int32]:
        """(C,) full blocks of prompt and output: the valid length of each row of `chain`."""
        return self.total_tokens // self.page_tokens

    @property
    def observations(self) -> NDArray[np.int32]:
        """(C,) observations of each content."""
        return -(-self.output_tokens // self.observe_tokens)

    def num_observations(self, content: int) -> int:
        """Observations of one content: decode steps 0, observe_tokens, … below its output length."""
        return int(self.observations[content])
