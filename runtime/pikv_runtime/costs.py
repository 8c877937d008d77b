"""`CostBreakdown`: what an episode or a run cost in physical units, read off one ledger lane."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger.setup import observations
from pikv_runtime.ledger.state import Ledger, Status, Tally
from pikv_runtime.objective import Reference

Floats = NDArray[np.float64]

TIME_PARTS = {
    "prefill": Tally.PREFILL_S,
    "weights": Tally.WEIGHTS_S,
    "attention": Tally.ATTENTION_S,
    "codec": Tally.CODEC_S,
    "link": Tally.LINK_S,
    "host": Tally.HOST_S,
    "decision": Tally.DECISION_S,
}
COUNTERS = {
    "iterations": Tally.ITERATIONS,
    "prompt_tokens": Tally.PROMPT_TOKENS,
    "hit_tokens": Tally.HIT_TOKENS,
    "encoded_pages": Tally.ENCODED_PAGES,
    "evicted_pages": Tally.EVICTED_PAGES,
    "evicted_blocks": Tally.EVICTED_BLOCKS,
    "preemptions": Tally.PREEMPTIONS,
    "wished_pages": Tally.WISHED_PAGES,
    "ghost_wishes": Tally.GHOST_WISHES,
    "conflicts": Tally.CONFLICTS,
    "spills": Tally.SPILLS,
    "asked": Tally.ASKED,
    "vetoes": Tally.VETOES,
    "link_bytes": Tally.LINK_BYTES,
    "host_hit_tokens": Tally.HOST_HIT_TOKENS,
    "host_out_blocks": Tally.HOST_OUT_BLOCKS,
    "host_in_blocks": Tally.HOST_IN_BLOCKS,
    "host_bytes": Tally.HOST_BYTES,
}


@dataclass(frozen=True)
class ClassCost:
    """One service class; means over what it applies to, NaN where there is nothing."""

    requests: int
    finished: int
    refused: int
    ttft_s_mean: float
    ttft_s_p95: float
    tpot_s_mean: float
    tpot_s_p95: float
    slo_share: float
    """Share of all its requests that finished within both objectives."""
    loss: float
    """Fidelity loss per audited token and layer observed so far."""


@dataclass(frozen=True)
class WorstRequest:
    """The request with the largest latency charge, and the audited one with the largest loss; -1: none."""

    latency_request: int
    latency_charge: float
    loss_request: int
    loss: float
    """Its loss over the observations and layers due to it."""


@dataclass(frozen=True)
class CostBreakdown:
    """Costs so far, seconds of the clock in use; per-request numbers are NaN where it never happened."""

    duration_s: float
    busy_s: float
    waiting_s: float
    """Request-seconds from arrival to first token (or until now)."""
    time_s: dict[str, float]
    """Parts of `busy_s`, by name; codec, link and host also count what the next iteration will pay."""
    ttft_s: Floats = field(repr=False)
    """(N,) arrival to first token."""
    tpot_s: Floats = field(repr=False)
    """(N,) per output token after the first; 0 where there is but one."""
    resident_bytes_mean: float
    resident_bytes_peak: float
    resident_bytes_by_rank: list[int]
    """At the moment."""
    host_bytes_mean: float
    """Of evicted blocks in host memory, all ranks; no part of the resident bytes, nor of M."""
    audit_bytes: int
    """Most bytes of exact shadows at a time, kept beside the cache on this process's ranks; 0 in traces."""
    hit_share: float
    """Share of admitted prompt tokens found in the cache."""
    wished_mass_share: float
    """Share of the attention mass of wished pages that was resident (audited requests)."""
    loss: float
    """Class-weighted loss, summed over audited tokens and layers."""
    counters: dict[str, int]
    classes: list[ClassCost]
    worst: WorstRequest

    def to_json(self) -> str:
        """Strict JSON: arrays as lists, NaN as null."""
        return json.dumps(_plain(asdict(self)), allow_nan=False)


def latency_charges(s: Ledger, lane: int) -> Floats:
    """Latency charge of each request so far, c·(TTFT/SLO + TPOT/SLO), (N,), without what `close` adds."""
    n = int(s.num_requests[lane])
    classes = s.req_class[lane, :n]
    to_first, after = _spans(s, lane)
    waiting = s.class_weight[lane, classes] / s.class_ttft_s[lane, classes]
    steps = np.maximum(1, s.req_output[lane, :n] - 1)
    decoding = s.class_weight[lane, classes] / (s.class_tpot_s[lane, classes] * steps)
    charges: Floats = waiting * to_first + decoding * after
    return charges


def breakdown(s: Ledger, lane: int = 0, reference: Reference | None = None, audit_bytes: int = 0) -> CostBreakdown:
    """Read lane `lane`. With `reference`, unfinished requests count their latency in U, as in J."""
    tally = s.tally[lane]
    clock_s = float(s.clock_s[lane])
    ttft_s, tpot_s = _request_times(s, lane)
    return CostBreakdown(
        duration_s=clock_s,
        busy_s=float(tally[Tally.BUSY_S]),
        waiting_s=float(_spans(s, lane)[0].sum()),
        time_s={name: float(tally[column]) for name, column in TIME_PARTS.items()},
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        resident_bytes_mean=float(tally[Tally.BYTE_SECONDS]) / clock_s if clock_s > 0 else 0.0,
        resident_bytes_peak=float(tally[Tally.PEAK_BYTES]),
        resident_bytes_by_rank=s.bytes_rank[lane].tolist(),
        host_bytes_mean=float(tally[Tally.HOST_BYTE_SECONDS]) / clock_s if clock_s > 0 else 0.0,
        audit_bytes=audit_bytes,
        hit_share=_ratio(tally[Tally.HIT_TOKENS], tally[Tally.PROMPT_TOKENS], 0.0),
        wished_mass_share=_ratio(tally[Tally.HIT_MASS], tally[Tally.WISHED_MASS], 1.0),
        loss=float(tally[Tally.LOSS]),
        counters={name: int(tally[column]) for name, column in COUNTERS.items()},
        classes=[_class_cost(s, lane, c, ttft_s, tpot_s) for c in range(s.class_weight.shape[1])],
        worst=_worst(s, lane, reference),
    )


def _spans(s: Ledger, lane: int) -> tuple[Floats, Floats]:
    """Seconds before and after the first token of each request, until its end or now; both (N,)."""
    n = int(s.num_requests[lane])
    now = s.clock_s[lane]
    arrival, first = s.req_arrival_s[lane, :n], s.req_first_s[lane, :n]
    over = np.isin(s.req_status[lane, :n], (Status.DONE, Status.CANCELLED))
    end = np.where(over, s.req_finish_s[lane, :n], now)
    to_first = np.where(first >= 0, first, np.maximum(end, arrival)) - arrival
    return to_first, np.where(first >= 0, end - first, 0.0)


def _request_times(s: Ledger, lane: int) -> tuple[Floats, Floats]:
    """TTFT and TPOT, (N,) each, NaN where the first token, or the end, has not come."""
    n = int(s.num_requests[lane])
    to_first, after = _spans(s, lane)
    done = s.req_status[lane, :n] == Status.DONE
    ttft_s = np.where(s.req_first_s[lane, :n] >= 0, to_first, np.nan)
    return ttft_s, np.where(done, after / np.maximum(1, s.req_output[lane, :n] - 1), np.nan)


def _class_cost(s: Ledger, lane: int, c: int, ttft_s: Floats, tpot_s: Floats) -> ClassCost:
    n = int(s.num_requests[lane])
    mine = s.req_class[lane, :n] == c
    status = s.req_status[lane, :n]
    in_time = (ttft_s <= s.class_ttft_s[lane, c]) & (tpot_s <= s.class_tpot_s[lane, c])
    first, rest = (values[mine & ~np.isnan(values)] for values in (ttft_s, tpot_s))
    return ClassCost(
        requests=int(mine.sum()),
        finished=int((mine & (status == Status.DONE)).sum()),
        refused=int((mine & (status == Status.REFUSED)).sum()),
        ttft_s_mean=float(first.mean()) if len(first) else np.nan,
        ttft_s_p95=float(np.percentile(first, 95)) if len(first) else np.nan,
        tpot_s_mean=float(rest.mean()) if len(rest) else np.nan,
        tpot_s_p95=float(np.percentile(rest, 95)) if len(rest) else np.nan,
        slo_share=_ratio((mine & in_time).sum(), mine.sum(), np.nan),
        loss=_ratio(s.loss_class[lane, c, 0], s.loss_class[lane, c, 1], np.nan),
    )


def _worst(s: Ledger, lane: int, reference: Reference | None) -> WorstRequest:
    n = int(s.num_requests[lane])
    if n == 0:
        return WorstRequest(-1, 0.0, -1, 0.0)
    latency = latency_charges(s, lane)
    if reference is not None:
        latency = latency + np.where(s.req_status[lane, :n] != Status.DONE, reference.charges[:n], 0.0)
    audited = s.req_audited[lane, :n] == 1
    due = np.maximum(1, observations(s, lane)) * s.layers
    loss = np.where(audited, s.req_loss[lane, :n] / due, 0.0)
    slowest, blurred = int(latency.argmax()), int(loss.argmax())
    return WorstRequest(slowest, float(latency[slowest]), blurred if loss[blurred] > 0 else -1, float(loss[blurred]))


def _ratio(part: float, whole: float, empty: float) -> float:
    return float(part / whole) if whole > 0 else empty


def _plain(value: Any) -> Any:
    """`value` with only what strict JSON knows."""
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list | np.ndarray):
        return [_plain(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
