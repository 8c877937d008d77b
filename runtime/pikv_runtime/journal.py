"""The journal of unfinished requests: what an engine that died had promised, and how far it had come.

What is written when, and what that survives:

- Accepted requests are on the disk (fsync) before the first of them is served.
- Tokens are handed to the operating system at the end of the iteration that made them: nothing is lost when the
  process dies. They are on the disk at the end of the control interval: power loss costs at most one interval, which is
  computed again.
- If the disk is full, requests that are not yet accepted are refused with one error. Those that are accepted go on:
  after a restart they are computed from as far as the journal goes. Writing is tried again at every iteration.

A restarted engine goes on after the tokens that were written, so nothing that a client has seen changes; decoding is
greedy, so what follows is what an uninterrupted exact run would have said.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pikv_runtime.journal_format import FORMAT, JournalError, Recovered, Row, line_of, recover, request_row
from pikv_runtime.requests import Request

__all__ = ["Journal", "JournalError", "Recovered"]

_LOG = logging.getLogger("pikv")


class Journal:
    """An append-only file of one engine.

    `recovered` is what the file said when it was opened, and what was accepted since; `write_errors` counts writes that
    failed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or make the file, readable by its owner only, and read what it says.

        Raises:
            JournalError: another engine has it open, or the file is no journal.
            OSError: it cannot be opened.
        """
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise JournalError(f"journal {self.path}: another engine is writing it") from None
        data = self.path.read_bytes()
        self.recovered = recover(data)
        self._end = self.recovered.sound_bytes
        if self.recovered.skipped and not (self.recovered.header or self.recovered.requests):
            os.close(self._file)
            raise JournalError(
                f"{self.path}: no journal (line {self.recovered.skipped[0][0]}: {self.recovered.skipped[0][1]})"
            )
        for number, reason in self.recovered.skipped:
            _LOG.warning("journal %s: line %d skipped: %s", self.path, number, reason)
        self.write_errors = 0
        self.failing = False
        self._dirty = False
        self._said = {r.request_id: list(self.recovered.said[r.request_id]) for r in self.recovered.unfinished}
        self._owed: list[Row] = []

    def accept(self, requests: Iterable[Request], *, page_tokens: int, model: str) -> None:
        """Promise to serve `requests`: they are on the disk when this returns. Those it knows already are passed over.

        Raises:
            JournalError: the file is full or broken (then none is accepted); it was written for another model or page
                size; or it knows a request of the same id with another prompt.
        """
        self._check_header(page_tokens, model)
        fresh = [request for request in requests if self._is_new(request)]
        header = {"kind": "journal", "format": FORMAT, "page_tokens": page_tokens, "model": model}
        rows = [*([] if self.recovered.header else [header]), *(self._row(request) for request in fresh)]
        self._cut()
        before = self._end
        try:
            self._append(b"".join(map(line_of, rows)))
            os.fsync(self._file)
        except OSError as error:
            self._end = before
            self._cut()
            raise JournalError(f"journal {self.path}: {error.strerror}; no new request is accepted") from None
        self.recovered.header = self.recovered.header or header
        self.recovered.requests |= {request.request_id: request for request in fresh}
        self._said |= {request.request_id: [] for request in fresh}

    def _row(self, request: Request) -> Row:
        """Arrivals count from the journal's beginning, whichever run they belong to."""
        return {**request_row(request), "arrival_s": self.recovered.clock_s + request.arrival_s}

    def _check_header(self, page_tokens: int, model: str) -> None:
        for name, value in (("page_tokens", page_tokens), ("model", model)):
            known = self.recovered.header.get(name, value)
            if known != value:
                raise JournalError(
                    f"journal {self.path} was written with {name}={known!r}, the engine has {value!r}: "
                    "the same tokens would not follow"
                )

    def _is_new(self, request: Request) -> bool:
        known = self.recovered.requests.get(request.request_id)
        if known is None:
            return True
        same = {**request_row(known), "arrival_s": 0} == {**request_row(request), "arrival_s": 0}
        if not same:
            raise JournalError(
                f"journal {self.path}: request {request.request_id} is another one there; "
                "allowed is a new file, or the workload that it was written for"
            )
        return False

    def tokens(self, said: Sequence[tuple[int, int]], clock_s: float) -> None:
        """An iteration is over: (request id, its next token) for each that got one, and what the clock says now."""
        if not said:
            return
        rows = [(number, len(self._said[number]), [token]) for number, token in said]
        for number, token in said:
            self._said[number].append(token)
        self.recovered.clock_s = max(self.recovered.clock_s, clock_s)
        self._write({"kind": "tokens", "clock_s": clock_s, "said": rows})

    def end(self, number: int, how: str) -> None:
        """Request `number` is over: `how` is done, refused or cancelled."""
        output = self._said.pop(number)
        row = {"kind": "end", "id": number, "how": how, "output": output}
        if not self._write(row):
            self._owed.append(row)

    def sync(self) -> None:
        """What was written is on the disk when this returns, as far as the disk can."""
        if self._dirty:
            try:
                os.fsync(self._file)
                self._dirty = False
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        """Sync and let go of the file."""
        self.sync()
        os.close(self._file)

    def _write(self, row: Row) -> bool:
        """Append a row, after whatever is owed from a time when that was not possible. False if it is not now."""
        rows = [*self._owed, *([self._catch_up()] if self.failing else []), row]
        try:
            self._append(b"".join(map(line_of, rows)))
        except OSError as error:
            self._fail(error)
            return False
        if self.failing:
            _LOG.warning("journal %s is written again; nothing is missing", self.path)
        self._owed.clear()
        self.failing, self._dirty = False, True
        return True

    def _catch_up(self) -> Row:
        """All that has been said by those who are not done."""
        return {"kind": "tokens", "clock_s": 0.0, "said": [(n, 0, said) for n, said in self._said.items() if said]}

    def _append(self, data: bytes) -> None:
        """Write whole lines or none: a write that was cut short is taken back."""
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], self._end + done)
        self._end += len(data)

    def _fail(self, error: OSError) -> None:
        self.write_errors += 1
        if not self.failing:
            _LOG.error(
                "journal %s: %s; serving goes on, and what is missing would be computed again after a restart",
                self.path, error.strerror,
            )  # fmt: skip
        self.failing = True
        self._cut()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):  # half a line at the end is left out when the file is read
            os.ftruncate(self._file, self._end)
