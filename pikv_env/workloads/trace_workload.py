"""Traces in the Mooncake line format as workloads: contents by nearest length, pages by the trace's blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.hashing import mix, to_hash_ids
from pikv_env.traces.library import TraceLibrary
from pikv_env.workloads.mooncake import BLOCK_TOKENS, read_mooncake
from pikv_runtime.requests import Request, RequestList


def load_mooncake(
    path: str | Path,
    library: TraceLibrary,
    seed: int = 0,
    *,
    token_scale: float = 32.0,
    block_tokens: int = BLOCK_TOKENS,
    time_scale: float = 1.0,
    jitter_ms: float = 3000.0,
    max_requests: int | None = None,
    batch_share: float = 0.0,
    lengths: Literal["library", "trace"] = "library",
) -> RequestList:
    """Turn a trace into a workload that is priced without text.

    A page of the workload stands for `page_tokens * token_scale` tokens of the trace, so with a scale of 32
    and 16-token pages a 512-token block is one page, and with a scale of 1 it is 32 pages. A page is shared
    as far as the trace block in which it ends is shared. Pages with output tokens are the request's own.

    Args:
        path: Trace file, plain or `.gz`.
        library: Gives each request the content of the nearest prompt length, and `page_tokens`.
        seed: Of jitter, ties and classes.
        token_scale: Trace tokens that one workload token stands for.
        block_tokens: Trace tokens of one hash.
        time_scale: Workload seconds for one second of the trace; above 1 lowers the rate.
        jitter_ms: Uniform jitter of the stamps, which are quantised to 3 s in public traces.
        max_requests: Read only so many, the first by time.
        batch_share: Share of requests of class 1.
        lengths: "library" gives a request the lengths of its content, so that its attention can be replayed;
            "trace" keeps the scaled lengths, for studies of reuse alone.

    Returns:
        Requests ordered by arrival, the first at or after 0.
    """
    if not token_scale > 0 or not time_scale > 0:
        raise ValueError(f"token_scale={token_scale} and time_scale={time_scale} must be positive")
    if lengths not in ("library", "trace"):
        raise ValueError(f"lengths={lengths!r}: allowed 'library', 'trace'")
    if lengths == "library" and not len(library):
        raise ValueError("lengths='library' needs a library with contents, this one has 0")
    rng = np.random.default_rng([seed, 0x4D4F4F4E])
    records = sorted(read_mooncake(path, block_tokens), key=lambda r: r.timestamp_ms)[:max_requests]
    stamps = np.array([r.timestamp_ms for r in records])
    arrival_s = (stamps - stamps[0] + rng.uniform(0, jitter_ms, len(stamps))) * time_scale / 1000
    classes = (rng.random(len(records)) < batch_share).astype(int)
    wanted = np.array([r.input_length / token_scale for r in records])
    contents = nearest_rows(rng, library.prompt_tokens, wanted) if len(library) else np.full(len(records), -1)
    requests = []
    for request_id, at in enumerate(np.argsort(arrival_s, kind="stable").tolist()):
        record, content = records[at], int(contents[at])
        prompt = max(1, round(record.input_length / token_scale))
        output = max(1, round(record.output_length / token_scale))
        if lengths == "library":
            prompt, output = int(library.prompt_tokens[content]), int(library.output_tokens[content])
        pages = (prompt + output) // library.page_tokens
        known = min(prompt, int(record.input_length / token_scale)) // library.page_tokens
        span = library.page_tokens * token_scale / block_tokens
        blocks = np.array(record.hash_ids or (0,), np.int64)
        ids = page_ids(blocks, len(record.hash_ids), pages, known, span, mix(0), mix(1, seed, request_id))
        requests.append(Request(request_id, float(arrival_s[at]), prompt, output, ids, int(classes[at]), content))
    horizon = float(arrival_s.max()) + 1e-3
    return RequestList(f"mooncake:{Path(path).name}", horizon, tuple(requests), family="mooncake", seed=seed)


def nearest_rows(rng: np.random.Generator, sizes: NDArray[np.int32], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place of the nearest size for each wanted length, ties drawn at random.

    Args:
        rng: Draws among equal sizes.
        sizes: Lengths to choose from, at least one, (C,).
        wanted: Lengths, (R,).

    Returns:
        Places in `sizes`, (R,).
    """
    order = rng.permutation(len(sizes))
    order = order[np.argsort(sizes[order], kind="stable")]
    ranked = sizes[order]
    right = np.clip(np.searchsorted(ranked, wanted), 0, len(ranked) - 1)
    left = np.maximum(right - 1, 0)
    size = np.where(wanted - ranked[left] <= ranked[right] - wanted, ranked[left], ranked[right])
    low, high = np.searchsorted(ranked, size, "left"), np.searchsorted(ranked, size, "right")
    return order[low + (rng.random(len(wanted)) * (high - low)).astype(np.int64)]


def page_ids(
    hash_ids: NDArray[np.int64],
    blocks: Any,
    pages: int,
    known: Any,
    blocks_per_page: float,
    salt: NDArray[np.uint64],
    own: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """Hash ids of requests' pages: a page is shared as far as the trace block in which it ends is.

    Args:
        hash_ids: The prompts' blocks in the trace, at least one column, (..., B).
        blocks: How many of them a prompt has, (...).
        pages: Pages of prompt and output.
        known: The first so many follow from the trace, the rest belong to the request, (...).
        blocks_per_page: Trace blocks that one page stands for.
        salt: A word common to all who may share, (...).
        own: A word of each request alone, (...).

    Returns:
        Ids (..., pages).
    """
    j = np.arange(pages)
    block = np.ceil((j + 1) * blocks_per_page).astype(np.int64) - 1
    ids = hash_ids[..., np.minimum(block, hash_ids.shape[-1] - 1)]
    shared = (j < np.expand_dims(known, -1)) & (block < np.expand_dims(blocks, -1))
    return to_hash_ids(np.where(shared, mix(salt[..., None], ids, j), mix(own[..., None], j)))
