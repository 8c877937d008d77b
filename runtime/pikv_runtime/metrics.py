"""What a server's operator watches, by name: the numbers behind the Prometheus endpoint and the JSON of a run.

Names and meanings follow vLLM's where it has them. Times are seconds of the engine's clock. Counters start when an
episode is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pikv_runtime.ledger.state import NO_CAP, Status, Tally

if TYPE_CHECKING:
    from pikv_runtime.engine import Engine

TTFT_BUCKETS_S = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
TPOT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
LATENCY_BUCKETS_S = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0)

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Values counted into buckets of given upper bounds, and beyond them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[int(np.searchsorted(self.bounds, value))] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, values up to it), the last one `+Inf`."""
        names = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        return [(name, float(count)) for name, count in zip(names, np.cumsum(self.counts), strict=True)]

    def copy(self) -> Histogram:
        """A copy that shares nothing."""
        other = Histogram(self.bounds)
        other.counts, other.total = self.counts.copy(), self.total
        return other


@dataclass(frozen=True)
class Metric:
    """One metric and its values by labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    doc: str
    values: Mapping[Labels, float] = field(default_factory=dict)
    histogram: Histogram | None = None
    everywhere: bool = False
    """Whether each rank has values of its own; all others are the same on every rank, and rank 0 tells them."""


class RequestTimes:
    """Histograms of the requests that finished, filled as they finish."""

    def __init__(self) -> None:
        self.ttft_s, self.tpot_s = Histogram(TTFT_BUCKETS_S), Histogram(TPOT_BUCKETS_S)
        self.latency_s = Histogram(LATENCY_BUCKETS_S)

    def finished(self, ttft_s: float, tpot_s: float, output_tokens: int) -> None:
        """Count a finished request; TPOT only where there is a token after the first."""
        self.ttft_s.add(ttft_s)
        if output_tokens > 1:
            self.tpot_s.add(tpot_s)
        self.latency_s.add(ttft_s + tpot_s * (output_tokens - 1))


def read(engine: Engine) -> list[Metric]:
    """All metrics of a loaded engine, as they are now; to be called between two iterations."""
    return [*_requests(engine), *_times(engine), *_cache(engine), *_control(engine), *_links(engine)]


def _one(name: str, kind: Literal["counter", "gauge"], doc: str, value: float) -> Metric:
    return Metric(name, kind, doc, {(): float(value)})


def _by(
    name: str, kind: Literal["counter", "gauge"], label: str, values: Mapping[str, float], doc: str, *,
    everywhere: bool = False,
) -> Metric:  # fmt: skip
    return Metric(name, kind, doc, {((label, k),): float(v) for k, v in values.items()}, everywhere=everywhere)


def _requests(engine: Engine) -> Iterator[Metric]:
    s = engine.ledger
    status = np.bincount(s.req_status[0, : s.num_requests[0]], minlength=len(Status))
    tally = s.tally[0]
    over = {"length": status[Status.DONE], "abort": len(engine.progress.cancelled), "refused": status[Status.REFUSED]}
    yield _one("pikv:num_requests_running", "gauge", "Requests being served.", s.running_count[0])
    yield _one("pikv:num_requests_waiting", "gauge", "Requests that wait for room.", status[Status.WAITING])
    yield _by(
        "pikv:request_finished", "counter", "finished_reason", over,
        "Requests that are over: all tokens out (length), client gone (abort), could never fit (refused).",
    )  # fmt: skip
    yield _one("pikv:num_preemptions", "counter", "Requests sent back to the queue.", tally[Tally.PREEMPTIONS])
    yield _one("pikv:prompt_tokens", "counter", "Prompt tokens admitted.", tally[Tally.PROMPT_TOKENS])
    yield _one("pikv:generation_tokens", "counter", "Tokens generated.", engine.progress.generated)


def _times(engine: Engine) -> Iterator[Metric]:
    times = engine.progress.times
    for name, histogram, doc in (
        ("time_to_first_token", times.ttft_s, "From arrival to the first token."),
        ("time_per_output_token", times.tpot_s, "Per token after the first, mean of a request."),
        ("e2e_request_latency", times.latency_s, "From arrival to the last token."),
    ):
        yield Metric(f"pikv:{name}_seconds", "histogram", doc, histogram=histogram.copy())


def _cache(engine: Engine) -> Iterator[Metric]:
    s, tally = engine.ledger, engine.ledger.tally[0]
    cap = float(s.cap_bytes[0])
    usage = float(s.bytes_rank[0].max()) / cap if cap < NO_CAP else 0.0
    yield _one("pikv:kv_cache_usage_perc", "gauge", "Share of the fullest rank's cap; 1 is full.", usage)
    ranks = {str(rank): float(n) for rank, n in enumerate(s.bytes_rank[0])}
    yield _by("pikv:kv_cache_resident_bytes", "gauge", "rank", ranks, "Resident bytes, centroids included.")
    stored: dict[Labels, float] = {
        (("rank", str(rank)), ("tier", tier), ("codec", codec)): float(n)
        for tier, found in (("device", engine.runner.nbytes()), ("host", engine.runner.host_nbytes()))
        for rank, codecs in found.items()
        for codec, n in codecs.items()
    }
    doc = "Bytes of the tensors that pages are stored in."
    yield Metric("pikv:kv_cache_bytes", "gauge", doc, stored, everywhere=True)
    yield _one("pikv:prefix_cache_queries", "counter", "Prompt tokens looked up.", tally[Tally.PROMPT_TOKENS])
    yield _one("pikv:prefix_cache_hits", "counter", "Prompt tokens found.", tally[Tally.HIT_TOKENS])
    evicted = {"control": tally[Tally.EVICTED_PAGES], "cached": tally[Tally.EVICTED_BLOCKS] * s.layers}
    yield _by(
        "pikv:evicted_pages", "counter", "reason", evicted,
        "Pages of running requests that a control evicted (control), of cached blocks that left the device (cached).",
    )  # fmt: skip
    yield _one("pikv:encoded_pages", "counter", "Pages that took a lower rung.", tally[Tally.ENCODED_PAGES])
    moved = {"out": tally[Tally.HOST_OUT_BLOCKS], "in": tally[Tally.HOST_IN_BLOCKS]}
    yield _by("pikv:host_blocks", "counter", "direction", moved, "Blocks moved to the host and back.")


def _control(engine: Engine) -> Iterator[Metric]:
    tally, loop = engine.ledger.tally[0], engine.control_loop
    yield _one("pikv:control_decisions", "counter", "Decisions.", engine.timers.decisions)
    yield _one("pikv:control_decision_seconds", "counter", "Wall time of decisions.", engine.timers.decision_s)
    clips = loop.clips + getattr(engine.policy, "clips", 0)  # a guard clips what it lets through
    yield _one("pikv:control_clips", "counter", "Values of controls that were NaN or out of range.", clips)
    yield _one("pikv:control_vetoes", "counter", "Asked changes that were not legal.", tally[Tally.VETOES])
    counters: dict[str, Any] = getattr(engine.policy, "counters", {})
    reasons = {name: float(n) for name, n in counters.items() if name not in GUARD_COUNTERS}
    yield _by("pikv:guard_reasons", "counter", "reason", reasons, "Why decisions were taken away from the policy.")
    for name, doc in GUARD_COUNTERS.items():
        yield _one(f"pikv:guard_{name}", "counter", doc, counters.get(name, 0))
    yield _one("pikv:guard_engaged", "gauge", "1 while the fallback decides.", getattr(engine.policy, "engaged", False))


GUARD_COUNTERS = {
    "decisions": "Decisions that the guard watched.",
    "fallback_decisions": "Decisions that the fallback made.",
    "trips": "Times that the guard took over from the policy.",
    "recoveries": "Times that it gave back.",
}


def _links(engine: Engine) -> Iterator[Metric]:
    sent = {purpose: float(n) for purpose, n in engine.transport.sent_bytes.items()}
    yield _by(
        "pikv:link_bytes", "counter", "purpose", sent, "Bytes that this process's ranks sent to others.",
        everywhere=True,
    )  # fmt: skip
    if engine.journal is not None:
        errors = engine.journal.write_errors
        yield _one("pikv:journal_write_errors", "counter", "Writes to the journal that failed.", errors)


def as_json(metrics: list[Metric]) -> dict[str, Any]:
    """Plain JSON: a number where there are no labels, else a list of labels and values."""
    found: dict[str, Any] = {}
    for metric in metrics:
        name = metric.name + ("_total" if metric.kind == "counter" else "")
        if metric.histogram is not None:
            h = metric.histogram
            found[name] = {"count": int(h.counts.sum()), "sum": h.total, "buckets": dict(h.cumulative())}
        elif list(metric.values) == [()]:
            found[name] = metric.values[()]
        else:
            found[name] = [{**dict(labels), "value": value} for labels, value in metric.values.items()]
    return found
