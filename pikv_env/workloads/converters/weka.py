"""Weka's agentic sessions (kv-cache-tester): one JSON session per line, requests with block hashes of their prompt.

A session has `id`, `block_size`, `requests`; a request `t` (seconds from the session's start), `in`, `out`, and the
ids of its prompt's whole blocks as `hash_ids` or run-length coded as `hash_id_runs` [start, count, …]. A request of
type `subagent` holds a session of its own whose times count from its start. Ids mean something inside one session
only, so nothing is shared between sessions. Sessions have no common clock: they start as a Poisson process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pikv_env.workloads.converters.base import CONVERTERS, ConversionError, ConvertOptions, numbered_lines
from pikv_env.workloads.mooncake import MooncakeRecord

Found = tuple[float, int, int, list[int]]
"""Seconds, prompt tokens, output tokens, ids of whole blocks."""


def read(source: Path, options: ConvertOptions) -> Iterator[MooncakeRecord]:
    """Records of all sessions of a file, or of a folder with one session in each `.json`."""
    rng = np.random.default_rng([options.seed, 0x57454B41])
    start = 0.0
    for number, (where, session) in enumerate(_sessions(source)):
        if start >= options.end_s:
            return  # sessions only start later
        size: Any = session.get("block_size")
        if not _whole(size, 1) or options.block_tokens % size:
            raise ConversionError(f"{where}: block_size={size!r} must divide block_tokens={options.block_tokens}")
        blocks = _Blocks(number, options.block_tokens // size)
        for at, prompt, output, ids in _requests(session, 0.0, size, where):
            last = [blocks.own()] if prompt % options.block_tokens else []
            yield MooncakeRecord((start + at) * 1000, prompt, output, (*blocks(ids), *last))
        start += rng.exponential(options.session_gap_s)


def _sessions(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each session stands, and the session."""
    if source.is_dir():
        files = sorted(source.glob("*.json"))
        if not files:
            raise ConversionError(f"{source}: holds no .json files")
        for path in files:
            yield str(path), _parsed("\n".join(line for _, line in numbered_lines(path)), str(path))
        return
    for number, line in numbered_lines(source):
        if line.strip():
            yield f"{source}:{number}", _parsed(line, f"{source}:{number}")


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        session = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConversionError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(session, dict) or not isinstance(session.get("requests"), list):
        raise ConversionError(f"{where}: expected a session with a list of requests")
    return session


def _requests(session: dict[str, Any], start_s: float, size: int, where: str) -> Iterator[Found]:
    """Requests of a session and of the subagents in it."""
    for number, request in enumerate(session["requests"]):
        here = f"{where}: request {number}"
        if not isinstance(request, dict) or not _number(request.get("t")):
            raise ConversionError(f"{here}: expected an object with t in seconds")
        at = start_s + request["t"]
        if isinstance(request.get("requests"), list):
            yield from _requests(request, at, size, here)
            continue
        prompt: Any = request.get("in")
        output: Any = request.get("out")
        if not _whole(prompt, 0) or not _whole(output, 0):
            raise ConversionError(f"{here}: in={prompt!r} and out={output!r} must be integers of at least 0")
        ids = _ids(request, here)
        if len(ids) != prompt // size:
            raise ConversionError(f"{here}: {len(ids)} hash ids, but in={prompt} has {prompt // size} whole blocks")
        if prompt:  # a request that failed before its prompt was counted asks for nothing
            yield at, prompt, output, ids


def _ids(request: dict[str, Any], where: str) -> list[int]:
    """Ids of the whole blocks, unpacked."""
    ids: Any = request.get("hash_ids")
    runs: Any = request.get("hash_id_runs")
    if isinstance(ids, list) and all(_whole(i, 0) for i in ids):
        return ids
    if isinstance(runs, list) and len(runs) % 2 == 0 and all(_whole(i, 0) for i in runs) and sum(runs[1::2]) < 2**24:
        return [i for first, count in zip(runs[::2], runs[1::2], strict=True) for i in range(first, first + count)]
    raise ConversionError(f"{where}: hash_ids or hash_id_runs must be a list of integers, runs in pairs")


class _Blocks:
    """Numbers of blocks of several source blocks, chained: equal numbers, equal ids from the prompt's start."""

    def __init__(self, session: int, step: int) -> None:
        self.session, self.step = session, step
        self.numbers: dict[tuple[int, ...], int] = {}

    def __call__(self, ids: list[int]) -> list[int]:
        found: list[int] = []
        for end in range(self.step, len(ids) + 1, self.step):
            name = (found[-1] if found else -1, *ids[end - self.step : end])
            found.append(self.numbers.setdefault(name, self.session * 2**32 + len(self.numbers)))
        return found

    def own(self) -> int:
        """The number of a block that nobody shares: a prompt's partial last one."""
        return self.numbers.setdefault((-2, len(self.numbers)), self.session * 2**32 + len(self.numbers))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**31


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53


CONVERTERS.add("weka", read)
