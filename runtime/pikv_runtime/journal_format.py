"""The journal's file: one JSON object a line, each with a checksum of itself; what a damaged file still says.

    {"crc": "8c736521", "kind": "journal", "format": "pikv-journal/1", "page_tokens": 16, "model": "…"}
    {"crc": …, "kind": "request", "id": 3, "arrival_s": 0, "prompt": […], "output_tokens": 9, "class": 0, "hashes": []}
    {"crc": …, "kind": "tokens", "clock_s": 1.25, "said": [[3, 0, [101, 32]], [4, 7, [98]]]}
    {"crc": …, "kind": "end", "id": 3, "how": "done", "output": […]}

`said` lists a request, the number of its first token here, and tokens. `how` is done, refused or cancelled. Prompts and
outputs are in the file as token ids: it deserves the protection that the prompts deserve.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pikv_runtime.requests import Request

FORMAT = "pikv-journal/1"
HOW = ("done", "refused", "cancelled")

Row = dict[str, Any]


class JournalError(ValueError):
    """A journal that belongs to another run, or that cannot be written; the message says why."""


def line_of(row: Row) -> bytes:
    """The line of a row, checksum and newline included."""
    return json.dumps({"crc": _crc(row), **row}, separators=(",", ":")).encode() + b"\n"


def row_of(line: bytes) -> Row:
    """The row of a line.

    Raises:
        ValueError: it is no object, or not what was written.
    """
    row = json.loads(line)
    if not isinstance(row, dict) or "crc" not in row:
        raise ValueError("not an object with a checksum")
    if row.pop("crc") != _crc(row):
        raise ValueError("its checksum does not match")
    return row


def _crc(row: Row) -> str:
    return f"{zlib.crc32(json.dumps(row, sort_keys=True, separators=(',', ':')).encode()):08x}"


def request_row(request: Request) -> Row:
    """What is kept of a request: all that is needed to serve it."""
    assert request.prompt_ids is not None
    return {
        "kind": "request",
        "id": request.request_id,
        "arrival_s": request.arrival_s,
        "prompt": request.prompt_ids.tolist(),
        "output_tokens": request.output_tokens,
        "class": request.class_id,
        "hashes": request.hash_ids.tolist(),
    }


def _request(row: Row) -> Request:
    prompt = np.array(row["prompt"], np.int32)
    hashes = np.array(row["hashes"], np.int64)
    return Request(
        int(row["id"]), float(row["arrival_s"]), len(prompt), int(row["output_tokens"]), hashes, int(row["class"]),
        prompt_ids=prompt,
    )  # fmt: skip


@dataclass
class Recovered:
    """What a journal says: `requests`, what each has `said` so far, how those that are over `ended`; all by id."""

    header: Row = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    said: dict[int, list[int]] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    clock_s: float = 0.0
    """Where the engine's clock stood."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Lines that could not be read, by number from 1, and why."""
    sound_bytes: int = 0
    """Length up to the end of the last full line: what follows was cut off while it was written."""

    @property
    def unfinished(self) -> list[Request]:
        """Requests that were accepted and are not over, by arrival."""
        left = [r for r in self.requests.values() if r.request_id not in self.ended]
        return sorted(left, key=lambda r: (r.arrival_s, r.request_id))

    def apply(self, row: Row) -> None:
        """Take in one sound row."""
        kind = row["kind"]
        if kind == "journal":
            if row["format"] != FORMAT:
                raise ValueError(f"format {row['format']!r}, this version reads {FORMAT!r}")
            self.header = row
        elif kind == "request":
            request = _request(row)
            self.requests[request.request_id] = request
            self.said.setdefault(request.request_id, [])
        elif kind == "tokens":
            self.clock_s = max(self.clock_s, float(row["clock_s"]))
            for number, first, tokens in row["said"]:
                self._say(number, first, tokens)
        elif kind == "end":
            if row["how"] not in HOW:
                raise ValueError(f"how={row['how']!r}: allowed are {', '.join(HOW)}")
            self.ended[row["id"]] = row["how"]
            self.said[row["id"]] = list(row["output"])
        else:
            raise ValueError(f"kind={kind!r}")

    def _say(self, number: int, first: int, tokens: list[int]) -> None:
        """Tokens after a gap (a lost line) are dropped: they are computed again."""
        said = self.said.setdefault(number, [])
        if first <= len(said):
            said[first:] = tokens
        request = self.requests.get(number)
        if request is not None and len(said) >= request.output_tokens:
            self.ended.setdefault(number, "done")


def recover(data: bytes) -> Recovered:
    """Read a journal. A line that is damaged is skipped and named in `skipped`; an unfinished last one is left out."""
    found = Recovered(sound_bytes=data.rfind(b"\n") + 1)
    for number, line in enumerate(data[: found.sound_bytes].split(b"\n")[:-1], start=1):
        try:
            found.apply(row_of(line))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            found.skipped.append((number, reason))
    return found
