"""The Mooncake line format: one JSON object per request, with time, lengths and its prompt's block hashes.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, …, 2354]}

`timestamp` is in ms; `hash_ids` names each block of `block_tokens` (512 in the public traces) of the prompt,
the last one possibly partial; equal ids mean equal prefixes up to and including that block.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.hashing import mix, to_hash_ids
from pikv_env.traces.library import TraceLibrary
from pikv_runtime.requests import Request, RequestList

BLOCK_TOKENS = 512  # of the public traces


class MooncakeError(ValueError):
    """A line that is no request; the message names file, line and reason."""


@dataclass(frozen=True)
class MooncakeRecord:
    """One line of a trace."""

    timestamp_ms: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_mooncake(path: str | Path, block_tokens: int | None = None) -> list[MooncakeRecord]:
    """Read a trace, plain or `.gz`; blank lines are skipped.

    Args:
        path: The file.
        block_tokens: Where given, `hash_ids` must name exactly the blocks of `input_length`.

    Returns:
        The records in the order of the file.

    Raises:
        MooncakeError: On the first line that is no request, or where the file holds none.
    """
    records = []
    try:
        with _opened(Path(path)) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    records.append(_parsed(line, f"{path}:{number}", block_tokens))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise MooncakeError(f"{path}: cannot be read ({error})") from error
    if not records:
        raise MooncakeError(f"{path}: holds no requests")
    return records


def write_mooncake(path: str | Path, workload: RequestList, page_tokens: int) -> None:
    """Write a workload with blocks of `page_tokens`; hashes are renumbered 0, 1, 2, … by first use."""
    numbers: dict[int, int] = {}
    with Path(path).open("w", encoding="utf-8") as file:
        for request in workload.requests:
            full = request.prompt_tokens // page_tokens
            ids = [numbers.setdefault(int(h), len(numbers)) for h in request.hash_ids[:full]]
            if request.prompt_tokens % page_tokens:  # the partial last block belongs to this request alone
                ids.append(numbers.setdefault(-1 - request.request_id, len(numbers)))
            line = {
                "timestamp": round(request.arrival_s * 1000),
                "input_length": request.prompt_tokens,
                "output_length": request.output_tokens,
                "hash_ids": ids,
            }
            file.write(json.dumps(line) + "\n")


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
    contents = _nearest(rng, library, np.array([r.input_length / token_scale for r in records]))
    requests = []
    for request_id, at in enumerate(np.argsort(arrival_s, kind="stable").tolist()):
        record, content = records[at], int(contents[at])
        prompt = max(1, round(record.input_length / token_scale))
        output = max(1, round(record.output_length / token_scale))
        if lengths == "library":
            prompt, output = int(library.prompt_tokens[content]), int(library.output_tokens[content])
        pages = (prompt + output) // library.page_tokens
        known = min(prompt, int(record.input_length / token_scale)) // library.page_tokens
        ids = _page_ids(record, pages, known, library.page_tokens * token_scale, block_tokens, seed, request_id)
        requests.append(Request(request_id, float(arrival_s[at]), prompt, output, ids, int(classes[at]), content))
    horizon = float(arrival_s.max()) + 1e-3
    return RequestList(f"mooncake:{Path(path).name}", horizon, tuple(requests), family="mooncake", seed=seed)


def _opened(path: Path) -> IO[str]:
    """The file as text, unpacked where its name ends in .gz."""
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _parsed(line: str, where: str, block_tokens: int | None) -> MooncakeRecord:
    """One checked record; raises MooncakeError that begins with `where`."""
    try:
        data: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise MooncakeError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(data, dict):
        raise MooncakeError(f"{where}: a {type(data).__name__}, expected an object")
    for name in _problems(data):
        raise MooncakeError(f"{where}: {name}={str(data.get(name))[:60]} {_EXPECTED[name]}")
    hash_ids = tuple(data["hash_ids"])
    if block_tokens is not None and len(hash_ids) != -(-data["input_length"] // block_tokens):
        raise MooncakeError(
            f"{where}: {len(hash_ids)} hash_ids, but input_length={data['input_length']} has "
            f"{-(-data['input_length'] // block_tokens)} blocks of {block_tokens}"
        )
    return MooncakeRecord(float(data["timestamp"]), data["input_length"], data["output_length"], hash_ids)


_EXPECTED = {
    "timestamp": "must be a finite number of ms, at least 0",
    "input_length": "must be an integer of at least 1",
    "output_length": "must be an integer of at least 0",
    "hash_ids": "must be a list of integers from 0 to 2**63 - 1",
}


def _problems(data: dict[str, Any]) -> Iterator[str]:
    """Names of the fields that are missing or out of range."""
    stamp, ids = data.get("timestamp"), data.get("hash_ids")
    if not (_is_number(stamp) and 0 <= stamp < 2**63):
        yield "timestamp"
    for name, low in (("input_length", 1), ("output_length", 0)):
        if not (_is_integer(data.get(name)) and low <= data[name] < 2**31):
            yield name
    if not (isinstance(ids, list) and all(_is_integer(i) and 0 <= i < 2**63 for i in ids)):
        yield "hash_ids"


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return _is_integer(value) or isinstance(value, float)


def _nearest(rng: np.random.Generator, library: TraceLibrary, prompts: Iterable[float]) -> NDArray[np.int64]:
    """The content of nearest prompt length for each request, ties drawn at random; -1 without contents."""
    wanted = np.asarray(prompts, dtype=np.float64)
    if not len(library):
        return np.full(len(wanted), -1)
    order = rng.permutation(len(library))
    order = order[np.argsort(library.prompt_tokens[order], kind="stable")]
    sizes = library.prompt_tokens[order]
    right = np.clip(np.searchsorted(sizes, wanted), 0, len(sizes) - 1)
    left = np.maximum(right - 1, 0)
    size = np.where(wanted - sizes[left] <= sizes[right] - wanted, sizes[left], sizes[right])
    low, high = np.searchsorted(sizes, size, "left"), np.searchsorted(sizes, size, "right")
    return order[low + (rng.random(len(wanted)) * (high - low)).astype(np.int64)]


def _page_ids(
    record: MooncakeRecord,
    pages: int,
    known: int,
    page_span: float,
    block_tokens: int,
    seed: int,
    request: int,
) -> NDArray[np.int64]:
    """Hash ids (pages,): the first `known` follow from the trace, the rest belong to this request."""
    j = np.arange(pages)
    block = np.ceil((j + 1) * page_span / block_tokens).astype(np.int64) - 1
    ids = np.array(record.hash_ids or (0,), np.int64)[np.clip(block, 0, max(len(record.hash_ids) - 1, 0))]
    shared = (j < known) & (block < len(record.hash_ids))
    return to_hash_ids(np.where(shared, mix(0, ids, j), mix(1, seed, request, j)))
