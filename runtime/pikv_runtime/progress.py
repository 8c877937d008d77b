"""What of a workload is over, and who is told: the journal, the histograms, the engine's caller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pikv_runtime import ledger as L
from pikv_runtime.journal import Journal
from pikv_runtime.journal_format import Recovered
from pikv_runtime.metrics import RequestTimes
from pikv_runtime.served import Served, served, with_status
from pikv_runtime.transcripts import Transcripts


class Progress:
    """Follows the requests of lane 0 to their end.

    `times`: histograms of finished requests. `recovered`: what the journal said at the start.
    """

    def __init__(self, transcripts: Transcripts, recovered: Recovered, journal: Journal | None) -> None:
        self.times = RequestTimes()
        self.recovered = recovered
        self._transcripts, self._journal = transcripts, journal
        self._ids = [request.request_id for request in transcripts.requests]
        self._numbers = {number: q for q, number in enumerate(self._ids)}
        self._over: set[int] = set()
        self._cancelled: list[int] = []
        self._resumed = sum(map(len, transcripts.outputs))

    def number(self, request_id: int) -> int:
        """Number of the request in the ledger.

        Raises:
            ValueError: no such request is being served.
        """
        if request_id not in self._numbers:
            raise ValueError(f"request {request_id}: not among the {len(self._ids)} that are served")
        return self._numbers[request_id]

    @property
    def generated(self) -> int:
        """Tokens generated since the start; those that the journal knew are not among them."""
        return sum(map(len, self._transcripts.outputs)) - self._resumed

    @property
    def cancelled(self) -> list[int]:
        """Requests that were cancelled, by number."""
        return list(self._cancelled)

    def said(self, numbers: Sequence[int], clock_s: float) -> None:
        """An iteration is over, and the requests `numbers` have another token."""
        if self._journal is not None:
            said = [(self._ids[q], self._transcripts.outputs[q][-1]) for q in numbers]
            self._journal.tokens(said, self.recovered.clock_s + clock_s)

    def cancel(self, s: L.Ledger, q: int) -> None:
        """Cancel request `q`; nothing happens if it is over already."""
        if L.cancel(s, 0, q):
            self._cancelled.append(q)
            self._end(q, "cancelled")

    def suspend(self, s: L.Ledger) -> None:
        """Start nobody any more: whoever has no token and no slot stays unfinished, for the journal's next reader."""
        for status in (L.Status.FUTURE, L.Status.WAITING):
            for q in with_status(s, status):
                if not self._transcripts.outputs[q]:
                    L.cancel(s, 0, q)

    def finished(self, s: L.Ledger) -> Iterator[Served]:
        """Requests that finished since the last call; they and those that were refused are told to the journal."""
        for q in with_status(s, L.Status.DONE):
            if q not in self._over:
                done = served(s, q, self._transcripts.requests[q], self._transcripts.outputs[q])
                self._end(q, "done")
                self.times.finished(done.ttft_s, done.tpot_s, done.request.output_tokens)
                yield done
        for q in with_status(s, L.Status.REFUSED):
            if q not in self._over:
                self._end(q, "refused")
        if self._journal is not None:
            self._journal.sync()

    def _end(self, q: int, how: str) -> None:
        self._over.add(q)
        if self._journal is not None:
            self._journal.end(self._ids[q], how)

    def unfinished(self) -> list[int]:
        """Ids of the requests that are not over, as of the last call of `finished`."""
        return [number for q, number in enumerate(self._ids) if q not in self._over]
