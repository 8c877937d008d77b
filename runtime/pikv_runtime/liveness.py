"""Which rank is lost: ranks say in a store that they live and how far they are, so that others can name the culprit.

A collective that fails says which connection broke, not who is to blame: a dead rank's neighbour fails too, and its
connections break next. So every process beats in the rendezvous store from a thread of its own, with the number of
collectives that it has entered, and watches the others. Nothing is decided by a missing beat alone: it only names the
culprit once a collective has failed.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch._C._distributed_c10d import Store

    from pikv_runtime.transport import Transport
    from pikv_runtime.transport.base import Sizes

BEATS_IN_TIMEOUT = 20
MOST_S = 1.0
"""Longest time between two beats."""
SILENT_BEATS = 4
"""A rank that was not heard of for so many beats is silent."""


class RankLostError(RuntimeError):
    """Another rank died, hangs or failed; the message names it."""


class Liveness:
    """This process's beat, and what it knows of the others'.

    Args:
        store: the rendezvous store, on a connection of its own: it is used from a thread.
        rank, world: of this process.
        timeout_s: after which a collective fails; beats are a twentieth of it apart, and at most a second.
        hosts_store: whether the store ends with this process.
    """

    def __init__(self, store: Store, rank: int, world: int, timeout_s: float, hosts_store: bool = False) -> None:
        self.rank, self.world, self.timeout_s = rank, world, timeout_s
        self.entered = 0
        """Collectives that this rank has entered."""
        self._store, self._hosts_store = store, hosts_store
        self._verdict = ""
        self._lock = threading.Lock()
        self._beat_s = min(MOST_S, timeout_s / BEATS_IN_TIMEOUT)
        now = time.monotonic()
        self._last = dict.fromkeys(range(world), (-1, now))  # beats of each rank, and when they last changed
        self._told = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="pikv-liveness", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave in peace: nobody will be told that this rank was lost."""
        with contextlib.suppress(RuntimeError):
            self._say("left", self.rank, "1")
        self._end()

    def fail(self, reason: str) -> None:
        """Tell the others that this rank fails, and why; the first rank that says so is the culprit."""
        with contextlib.suppress(RuntimeError):
            self._accuse(f"rank {self.rank} of {self.world} failed: {reason}")
            self._linger()
        self._end()

    def culprit(self, error: Exception) -> str:
        """Who is to blame for a collective that failed with `error`: the same answer on every rank that asks."""
        try:
            verdict = self._accuse(self._suspect(error))
            self._linger()
            return verdict
        except RuntimeError:  # the store's host is the launcher, or rank 0
            return self._verdict or (
                f"rank 0 of {self.world} or the launcher was lost: the rendezvous store does not answer "
                f"({_line(error)})"
            )

    def _linger(self) -> None:
        """The store must not go before the others have heard the verdict."""
        if self._hosts_store:
            time.sleep(SILENT_BEATS * self._beat_s)

    def _suspect(self, error: Exception) -> str:
        accused = self._accused()
        if accused:
            return accused
        until = time.monotonic() + (SILENT_BEATS + 1) * self._beat_s
        while time.monotonic() < until:  # a rank that has just died was heard of a moment ago
            self._over.wait(self._beat_s)
            accused = self._accused()
            if accused:
                return accused
            self._watch()  # this rank's own thread may have been held up
            silent_s = self._silent_s()
            rank = max(silent_s, key=lambda r: silent_s[r])  # a busy machine may hold up the beats of a healthy one
            if silent_s[rank] > SILENT_BEATS * self._beat_s:
                return (
                    f"rank {rank} of {self.world} was lost: it has not been heard of for {silent_s[rank]:.1f} s "
                    f"({_line(error)})"
                )
        behind = self._behind()
        if behind is not None:
            return (
                f"rank {behind} of {self.world} hangs: it lives, and did not enter a collective within "
                f"{self.timeout_s:g} s ({_line(error)})"
            )
        return f"ranks lost each other, and all of {self.world} live: {_line(error)}"

    def _silent_s(self) -> dict[int, float]:
        """Seconds since each other rank was heard of; 0 for those that have left in peace."""
        now, others = time.monotonic(), (r for r in range(self.world) if r != self.rank)
        return {r: 0.0 if self._has_left(r) else now - self._last[r][1] for r in others}

    def _behind(self) -> int | None:
        entered = {r: self._number("entered", r) for r in range(self.world) if r != self.rank}
        slowest = min(entered, key=lambda r: entered[r])
        return slowest if entered[slowest] < self.entered else None

    def _live(self) -> None:
        """The thread: beat, and watch who else does."""
        while not self._over.wait(self._beat_s):
            try:
                entered = self.entered
                self._number("beat", self.rank, 1)
                self._number("entered", self.rank, entered - self._told)
                self._told = entered
                self._verdict = self._accused()
                self._watch()
            except RuntimeError:
                return  # the store is gone; the next collective finds out

    def _watch(self) -> None:
        for rank in range(self.world):
            beats = self._number("beat", rank)
            if beats != self._last[rank][0]:
                self._last[rank] = beats, time.monotonic()

    def _end(self) -> None:
        self._over.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2 * self._beat_s)

    def _number(self, name: str, rank: int, more: int = 0) -> int:
        with self._lock:
            return int(self._store.add(f"{name}/{rank}", more))

    def _say(self, name: str, rank: int, value: str) -> None:
        with self._lock:
            self._store.set(f"{name}/{rank}", value)

    def _has_left(self, rank: int) -> bool:
        with self._lock:
            return bool(self._store.check([f"left/{rank}"]))

    def _accuse(self, reason: str) -> str:
        """Agree on one culprit: whoever was accused first."""
        with self._lock:
            return str(self._store.compare_set("lost", "", reason).decode())

    def _accused(self) -> str:
        with self._lock:
            return self._store.get("lost").decode() if self._store.check(["lost"]) else ""


class WatchedTransport:
    """A transport between processes whose failures name the lost rank."""

    def __init__(self, transport: Transport, liveness: Liveness) -> None:
        self._transport, self._liveness = transport, liveness
        self.world, self.rank, self.local_ranks = transport.world, transport.rank, transport.local_ranks
        self.sent_bytes, self.collectives = transport.sent_bytes, transport.collectives

    def all_to_all(
        self, outgoing: Sequence[Sequence[Tensor]], incoming_bytes: Sizes, purpose: str
    ) -> list[list[Tensor]]:
        """See `Transport.all_to_all`."""
        with self._named():
            return self._transport.all_to_all(outgoing, incoming_bytes, purpose)

    def all_gather(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """See `Transport.all_gather`."""
        with self._named():
            return self._transport.all_gather(tensors, sizes)

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        """See `Transport.broadcast`."""
        with self._named():
            return self._transport.broadcast(tensor, src)

    def recount(self, before: str, after: str, nbytes: int) -> None:
        """See `Transport.recount`."""
        self._transport.recount(before, after, nbytes)

    @contextlib.contextmanager
    def _named(self):  # type: ignore[no-untyped-def]
        """Every collective that fails in here is a lost rank."""
        self._liveness.entered += 1
        try:
            yield
        except RuntimeError as error:
            raise RankLostError(self._liveness.culprit(error)) from error


def _line(error: Exception) -> str:
    """The first sentence of an error, without the file and line of the library that raised it."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^\]]*\.\w+:\d+\] ", "", first).partition(". ")[0][:200]
