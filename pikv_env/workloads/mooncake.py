"""The Mooncake line format: one JSON object per request, with time, lengths and its prompt's block hashes.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, …, 2354]}

`timestamp` is in ms; `hash_ids` names each block of `block_tokens` (512 in the public traces) of the prompt,
the last one possibly partial; equal ids mean equal prefixes up to and including that block.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard

from pikv_env.whole_file import write_whole
from pikv_runtime.requests import RequestList

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
        block_tokens: Where given, `hash_ids` must name exactly the blocks of `input_length`, and an id always follow
            the same one: hashes of a block's own text, whatever stands before it, would be taken for prefixes.

    Returns:
        The records in the order of the file.

    Raises:
        MooncakeError: On the first line that is no request, or where the file holds none.
    """
    records = []
    before: dict[int, int | None] = {}
    try:
        with _opened(Path(path)) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    records.append(_parsed(line, f"{path}:{number}", block_tokens))
                    if block_tokens is not None:
                        _check_prefix(records[-1].hash_ids, before, f"{path}:{number}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise MooncakeError(f"{path}: cannot be read ({error})") from error
    if not records:
        raise MooncakeError(f"{path}: holds no requests")
    return records


def write_records(path: str | Path, records: Iterable[MooncakeRecord]) -> int:
    """Write a trace, packed where the name ends in `.gz`; returns the number of records.

    Hash ids are renumbered 0, 1, 2, … by first use. The file appears whole or not at all; its folder is made.
    """
    numbers: dict[int, int] = {}
    lines = []
    for record in records:
        line = {
            "timestamp": round(record.timestamp_ms),
            "input_length": record.input_length,
            "output_length": record.output_length,
            "hash_ids": [numbers.setdefault(i, len(numbers)) for i in record.hash_ids],
        }
        lines.append(json.dumps(line) + "\n")
    data, path = "".join(lines).encode(), Path(path)
    write_whole(path, gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)
    return len(lines)


def write_mooncake(path: str | Path, workload: RequestList, page_tokens: int) -> None:
    """Write a workload with blocks of `page_tokens`; a partial last block belongs to its request alone."""
    records = []
    for r in workload.requests:
        ids = [int(h) for h in r.hash_ids[: r.prompt_tokens // page_tokens]]
        if r.prompt_tokens % page_tokens:
            ids.append(-1 - r.request_id)
        records.append(MooncakeRecord(r.arrival_s * 1000, r.prompt_tokens, r.output_tokens, tuple(ids)))
    write_records(path, records)


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


def _check_prefix(hash_ids: tuple[int, ...], before: dict[int, int | None], where: str) -> None:
    """Note which id stands before each; raise MooncakeError where another did: no equal prefixes, then."""
    previous: int | None = None
    for hash_id in hash_ids:
        known = before.setdefault(hash_id, previous)
        if known != previous:
            places = ["first" if one is None else f"after {one}" for one in (previous, known)]
            raise MooncakeError(
                f"{where}: hash id {hash_id} stands {places[0]}, earlier {places[1]}; "
                "equal ids must mean equal prompts from the start"
            )
        previous = hash_id


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
