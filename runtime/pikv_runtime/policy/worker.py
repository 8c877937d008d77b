"""A policy in Python, in a process of its own: neither its time nor its death is the decode loop's.

The class is named by where it is, `python:FILE.py:CLASS` or `python:MODULE:CLASS`. It needs no base class: a
constructor without arguments and `decide(telemetry, out)` are enough. Telemetry and control travel as plain float32
through two pipes; nothing is pickled. What the class may cost is one time-out per decision, and nothing at all while
it is still busy with an earlier one.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.policy.frames import (
    ERROR,
    HELLO,
    Frame,
    FrameError,
    pack_telemetry,
    unpack_control,
)

PREFIX = "python:"


class WorkerError(ValueError):
    """Why a policy's process gives no answer, in one line."""


class WorkerPolicy:
    """Asks a class in another process; see the module. A guard turns its errors into the fallback's decisions.

    Args:
        spec: `python:FILE.py:CLASS` or `python:MODULE:CLASS`.
        timeout_s: Longest that a decision waits for the answer.
        start_timeout_s: Longest that `prepare` waits.
        most_restarts: How often a process that died or hangs is started again.
        patience_s: Time without an answer after which the process counts as hanging and is started again.

    Raises:
        ValueError: `spec` names no file or no class.
    """

    def __init__(
        self,
        spec: str,
        timeout_s: float = 0.05,
        start_timeout_s: float = 20.0,
        most_restarts: int = 5,
        patience_s: float = 10.0,
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.command = [sys.executable, "-m", "pikv_runtime.policy.worker_process", *parse_spec(spec)]
        self.name, self.timeout_s, self.start_timeout_s = spec, timeout_s, start_timeout_s
        self.most_restarts, self.patience_s = most_restarts, patience_s
        self.restarts = self._sent = self._answered = 0
        self._lost_at = 0.0
        self._greeted, self._broken = False, ""

    def prepare(self) -> None:
        """Start the process and wait until the class is made; done by the first decision otherwise.

        Raises:
            WorkerError: It cannot be made, or has died too often.
        """
        if self._broken:
            raise WorkerError(self._broken)
        if self._process is not None:
            return
        self._spawn()
        try:
            if not self._poll(self.start_timeout_s):
                raise WorkerError(f"policy {self.name!r}: no sign of life within {self.start_timeout_s:g} s")
            if self._received.kind == ERROR:
                raise WorkerError(f"policy {self.name!r}: {self._received.text()}")
        except WorkerError:
            self.close()
            raise

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`.

        Raises:
            TimeoutError: No answer within the time-out, or still busy with an earlier question (at once).
            WorkerError: The process died, or the class raised.
        """
        self.prepare()
        out = out if out is not None else Control.zeros(len(telemetry.groups))
        deadline = time.monotonic() + self.timeout_s
        self._catch_up()
        self._sent += 1
        self._lost_at = time.monotonic() + self.patience_s
        self._send(pack_telemetry(self._sent, telemetry), deadline)
        while self._answered != self._sent:
            if not self._poll(deadline - time.monotonic()):
                raise TimeoutError(f"policy {self.name!r}: no answer within {self.timeout_s:g} s")
        if self._received.kind == ERROR:
            raise WorkerError(f"policy {self.name!r} raised {self._received.text()}")
        unpack_control(self._received, out)
        return out

    def close(self) -> None:
        """End the process."""
        process, self._process, self._greeted = self._process, None, False
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()

    def __del__(self) -> None:
        self.close()

    # ------------------------------------------------------------------ the process

    def _spawn(self) -> None:
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._received, self._lost_at = Frame(), time.monotonic() + self.start_timeout_s
        self._answered = self._sent - 1  # the greeting is still to come

    def _fail(self, reason: str) -> NoReturn:
        """Say why there is no answer, and start anew without waiting: the next decision may find it ready."""
        known, restarts = self._greeted, self.restarts
        self.close()
        if known and restarts < self.most_restarts:
            self.restarts += 1
            self._spawn()
            raise WorkerError(f"policy {self.name!r}: {reason}; it was started again")
        self._broken = f"policy {self.name!r}: {reason}, after {restarts} restarts"
        raise WorkerError(self._broken)

    def _catch_up(self) -> None:
        """Read, without waiting, what an earlier question or a start still owes.

        Raises:
            TimeoutError: It still does.
        """
        while self._answered != self._sent:
            if not self._poll(0.0):
                if time.monotonic() > self._lost_at:
                    self._fail("it has not answered for too long")
                raise TimeoutError(f"policy {self.name!r}: still busy with an earlier decision")

    def _poll(self, wait_s: float) -> bool:
        """Read one frame; False if there is none within `wait_s`."""
        deadline = time.monotonic() + wait_s
        while not self._received.whole:
            if not _ready(self._out, select.POLLIN, deadline):
                return False
            data = os.read(self._out, 1 << 16)
            if not data:
                self._fail(f"its process ended{self._status()}")
            try:
                self._received.add(data)
            except FrameError as error:
                self._fail(str(error))
        if self._received.kind == HELLO:
            self._greeted, self._answered = True, self._sent
        else:
            self._answered = self._received.number
        self._received.whole = False
        return True

    def _send(self, data: bytes, deadline: float) -> None:
        """Write a frame; who does not read it in time is started again: half a frame cannot be taken back."""
        left = memoryview(data)
        while left:
            try:
                if not _ready(self._in, select.POLLOUT, deadline):
                    self._fail("it does not read what it is told")
                left = left[os.write(self._in, left) :]
            except BrokenPipeError:
                self._fail(f"its process ended{self._status()}")

    def _status(self) -> str:
        """With which status, where that is known already: a process may close its pipes and go on."""
        status = self._process.poll() if self._process is not None else None
        return "" if status is None else f" with status {status}"


def _ready(pipe: int, event: int, deadline: float) -> bool:
    """Whether `pipe` can be read or written (or is closed) before `deadline`."""
    poll = select.poll()  # unlike select, it takes descriptors beyond 1023, which servers have
    poll.register(pipe, event)
    return bool(poll.poll(1000 * min(max(0.0, deadline - time.monotonic()), 3600.0)))


def parse_spec(spec: str) -> tuple[str, str]:
    """(file or module, class) of a spec; raises ValueError."""
    place, _, name = spec.removeprefix(PREFIX).rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"policy {spec!r}: wanted python:FILE.py:CLASS or python:MODULE:CLASS")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ValueError(f"policy {spec!r}: no file {place!r}")
        place = str(Path(place).resolve())
    return place, name
