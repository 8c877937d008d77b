"""What is asked of a running engine from outside: a client is gone, the server is to drain, or to stop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch

from pikv_runtime.transport import Transport


class Stage(IntEnum):
    """How far serving is on its way to its end."""

    SERVE = 0
    DRAIN = 1  # finish what is running, start nothing
    STOP = 2


@dataclass(frozen=True)
class Heard:
    """What every rank knows at the start of an iteration."""

    cancelled: Sequence[int]
    """Numbers of requests, in the order in which they were asked for."""
    stage: Stage


class Inbox:
    """Where other threads and signal handlers leave what they ask; the engine looks in once an iteration.

    Rank 0's inbox counts. Where ranks are processes it is broadcast, two integers and the numbers, but only if
    `shared` (on every rank): else an iteration would pay for a message that nobody sends.
    """

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self._cancelled: deque[int] = deque()
        self._stop_at: float | None = None

    def cancel(self, number: int) -> None:
        """Ask that request `number` be cancelled."""
        self._cancelled.append(number)

    def drain(self, deadline_s: float) -> None:
        """Ask that nothing new be started, and that serving stop in `deadline_s` seconds of wall time at the latest."""
        stop_at = time.monotonic() + deadline_s
        self._stop_at = stop_at if self._stop_at is None else min(self._stop_at, stop_at)

    def look(self, transport: Transport) -> Heard:
        """What rank 0 was asked since the last look; called by all ranks together.

        Raises:
            ValueError: something was asked, and ranks in other processes would not hear of it.
        """
        asked = [self._cancelled.popleft() for _ in range(len(self._cancelled))]
        stage = self._stage()
        if len(transport.local_ranks) == transport.world:
            return Heard(asked, stage)
        if not self.shared:
            if asked or stage != Stage.SERVE:
                raise ValueError("ranks in other processes do not hear of it: every rank needs Inbox(shared=True)")
            return Heard(asked, stage)
        word = transport.broadcast(torch.tensor([stage, len(asked)], dtype=torch.int64))
        count = int(word[1])
        if count:
            mine = asked if transport.rank == 0 else [0] * count
            asked = transport.broadcast(torch.tensor(mine, dtype=torch.int64)).tolist()
        return Heard(asked[:count], Stage(int(word[0])))

    def _stage(self) -> Stage:
        if self._stop_at is None:
            return Stage.SERVE
        return Stage.STOP if time.monotonic() >= self._stop_at else Stage.DRAIN
