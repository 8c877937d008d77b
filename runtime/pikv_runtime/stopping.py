"""Signals: the first SIGTERM or SIGINT drains, the second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from pikv_runtime.inbox import Inbox

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def draining_on_signals(inbox: Inbox, drain_s: float) -> Iterator[None]:
    """While in here, the first signal asks `inbox` to drain within `drain_s` seconds; the second one has the effect
    that it has by default: the process dies of it, and nothing more is written."""

    def heed(number: int, frame: FrameType | None) -> None:
        inbox.drain(drain_s)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        # os.write: a handler may interrupt whoever holds the lock of a stream
        name = signal.Signals(number).name
        os.write(2, f"{name}: what runs is finished within {drain_s:g} s; once more ends at once\n".encode())

    before = {number: signal.signal(number, heed) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
