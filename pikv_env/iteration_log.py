"""Serving for calibration: phases of live serving, and for every iteration what the price list counts and its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_runtime import ledger as L
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, GlobalControl, GroupControl, Telemetry
from pikv_runtime.engine import Engine
from pikv_runtime.ledger.state import BF16, INT4, INT8, Ledger, Price, Tally
from pikv_runtime.models.segments import ForwardResult
from pikv_runtime.objective import Reference
from pikv_runtime.policy.base import Policy
from pikv_runtime.requests import Request, RequestList

F8 = NDArray[np.float64]

FITTED = tuple(p for p in Price if p < Price.LINK_BYTE)
"""Prices that iterations of one rank tell about."""
EXTRAS = ("fills", "observed", "sparse", "codecs")
"""Work that the price list does not name, counted so that it does not blur the prices: whether pages filled (their
centroids and codec errors are measured), requests whose attention mass was observed, whether read sets were chosen,
and the codecs among the pages of decoding requests."""
COLUMNS = len(FITTED) + len(EXTRAS)
FAN_OUTS = (1.0, 0.1, 0.5, 0.25)
STEPS_PER_DECISION = 3
WARM_UP = 3  # iterations at the start of a phase that are not logged


@dataclass
class IterationLog:
    """What iterations did and how long they took."""

    page_tokens: int
    observe_tokens: int
    rows: list[F8] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def arrays(self) -> tuple[F8, F8]:
        """Features (n, COLUMNS), the prices' first and then the extras, and seconds (n,)."""
        return np.array(self.rows).reshape(-1, COLUMNS), np.array(self.seconds)


@dataclass(frozen=True)
class Phase:
    """Requests that arrive at once and run together."""

    requests: int
    prompts: tuple[int, int]
    """Shortest and longest prompt, tokens."""
    output_tokens: int
    codec: str = "native"
    """Top rung; with `bf16` the phase climbs down the ladder while it decodes."""
    sparse: bool = False
    """Read sparsely, the fan-out changing every few iterations."""
    batch_tokens: int = 256


def phases(longest: int, quick: bool = False) -> tuple[Phase, ...]:
    """A plan that keeps the prices apart: what one phase holds fixed, another varies.

    Args:
        longest: longest context that the model takes, tokens.
        quick: fewer phases, and shorter ones.
    """
    out = 32 if quick else 64
    top = max(32, min(1024 if quick else 1600, longest - out))
    short, middle, long = (min(top, 48), min(top, 256)), (min(top, 192), min(top, 640)), (top // 2, top)
    prefill = [Phase(1, long, 1, batch_tokens=32), Phase(2, long, 1, batch_tokens=256)]
    exact = [Phase(16, short, out), Phase(3, long, out)]
    native = [Phase(4, middle, out, sparse=True)]
    ladder = [Phase(n, p, out, "bf16", sparse=True) for n, p in ((1, long), (4, long), (8, middle))]
    if not quick:
        prefill.append(Phase(2, long, 1, batch_tokens=96))
        exact.append(Phase(1, middle, out))
        native.append(Phase(1, short, out, sparse=True))
        ladder.append(Phase(14, middle, out, "bf16", sparse=True))
    return (*ladder, *exact, *native, *prefill)


@dataclass
class Sweep:
    """A policy that changes the fan-out at every decision and asks for ever smaller pages."""

    rungs: tuple[float, float, float]
    """Ratios of the top rung and of the two below: each is reached in steps, then held."""
    decisions: int
    """Decisions until the last rung is reached."""
    made: int = 0

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """The next setting."""
        control = Control.neutral(len(telemetry.groups)) if out is None else out
        ratio = np.interp(self.made / self.decisions, (0.15, 0.35, 0.6, 0.8), np.repeat(self.rungs, (1, 2, 1)))
        control.groups[:, GroupControl.COMPRESSION_RATIO] = ratio
        control.globals[GlobalControl.FAN_OUT] = FAN_OUTS[self.made % len(FAN_OUTS)]
        self.made += 1
        return control


class LoggingEngine(Engine):
    """An engine on the wall clock that logs its iterations."""

    def __init__(self, model: Any, config: RuntimeConfig, policy: Policy, log: IterationLog) -> None:
        super().__init__(model, config, policy, clock="wall")
        self.log, self._seen, self._encoded = log, 0, 0.0
        self._now = stopwatch(model)
        self._started = 0.0

    def step(self, end_s: float) -> None:
        """One iteration, timed."""
        self._started = self._now()
        super().step(end_s)

    def _postprocess(self, result: ForwardResult, started: float) -> None:
        seconds = self._now() - self._started
        encoded = float(self.ledger.tally[0, Tally.ENCODED_PAGES])
        if self._seen >= WARM_UP:
            row = np.zeros(COLUMNS)
            row[: len(FITTED)] = priced_counts(self.ledger)
            row[Price.ENCODE_PAGE] = encoded - self._encoded
            row[len(FITTED) :] = extra_counts(self.ledger, result)
            self.log.rows.append(row)
            self.log.seconds.append(seconds)
        self._seen, self._encoded = self._seen + 1, encoded
        super()._postprocess(result, started)


def stopwatch(model: Any) -> Callable[[], float]:
    """The clock that times `model`: its process's CPU time where it runs on a CPU, which other processes on the
    machine do not stretch as they stretch wall time (one thread is busy all the time); else wall time."""
    return time.process_time if next(model.parameters()).device.type == "cpu" else time.perf_counter


def priced_counts(s: Ledger) -> F8:
    """How much of each fitted price the planned iteration of lane 0 pays, (len(FITTED),).

    Asked of the ledger's own price list, which is linear in its prices: what is fitted is what it multiplies.
    Leaves prices, tally and pending time as they were.
    """
    prices, tally, pending = s.prices[0].copy(), s.tally[0].copy(), float(s.pending_s[0])
    counts = np.zeros(len(FITTED))
    for p in FITTED:
        s.prices[0], s.pending_s[0] = 0.0, 0.0
        s.prices[0, p] = 1.0
        counts[p] = L.price(s, 0)
    s.prices[0], s.tally[0], s.pending_s[0] = prices, tally, pending
    return counts


def extra_counts(s: Ledger, result: ForwardResult) -> tuple[float, ...]:
    """The counts that `EXTRAS` names."""
    decoding = (s.slot_plan[0] > 0) & (s.slot_tokens[0] >= s.slot_target[0])
    codecs = np.count_nonzero(s.slot_reads[0, decoding].sum(axis=(0, 1, 2)))
    return bool(result.filled), len(result.observations), bool(s.sparse and decoding.any()), int(codecs)


def serve(
    model: Any,
    plan: Sequence[Phase],
    log: IterationLog,
    *,
    budget_s: float,
    on_phase: Callable[[], None] | None = None,
) -> None:
    """Serve `plan` into `log`, each phase for at most its share of what is left of `budget_s`."""
    end = time.perf_counter() + budget_s
    for number, phase in enumerate(plan):
        now = time.perf_counter()
        _serve_phase(model, phase, number, log, until=now + 2.0 * max(0.1, end - now) / (len(plan) - number))
        if on_phase is not None:
            on_phase()


def _serve_phase(model: Any, phase: Phase, seed: int, log: IterationLog, until: float) -> None:
    config = RuntimeConfig(
        page_tokens=log.page_tokens,
        observe_tokens=log.observe_tokens,
        read="sparse" if phase.sparse else "exact",
        router="centroid" if phase.sparse else "all",
        codec=phase.codec,
        slots=phase.requests,
        max_batch_tokens=phase.batch_tokens,
        audit_share=0.0,
        blocks=2048,
    )
    sweep = Sweep((1.0, 1.0, 1.0), max(1, phase.output_tokens // STEPS_PER_DECISION))
    engine = LoggingEngine(model, config, sweep, log)
    engine.load(_workload(phase, seed, int(model.config.vocab_size)), _NO_REFERENCE)
    if phase.codec == "bf16":
        sizes = engine.ledger.codec_bytes
        sweep.rungs = (1.0, 0.99 * float(sizes[BF16] / sizes[INT8]), 0.99 * float(sizes[BF16] / sizes[INT4]))
    steps = 0
    while engine.ledger.unfinished[0] > 0 and time.perf_counter() < until:
        if steps % STEPS_PER_DECISION == 0 and _all_decode(engine.ledger):
            engine.decide()
        engine.step(np.inf)
        steps += 1


def _all_decode(s: Ledger) -> bool:
    running = s.slot_request[0] >= 0
    return bool(running.any() and (s.slot_tokens[0] >= s.slot_target[0])[running].all())


_NO_REFERENCE = Reference(1.0, 1.0, 1.0, np.zeros(0), 0.0, 1.0, 1.0)  # J is not asked for


def _workload(phase: Phase, seed: int, vocabulary: int) -> RequestList:
    """Random prompts: the time of an iteration depends on their lengths."""
    rng = np.random.default_rng(seed)
    requests = []
    for i, length in enumerate(np.linspace(*phase.prompts, phase.requests).astype(int).tolist()):
        ids = rng.integers(0, min(vocabulary, 256), length).astype(np.int32)
        requests.append(Request(i, 0.0, length, phase.output_tokens, np.zeros(0, np.int64), prompt_ids=ids))
    return RequestList("calibration", 1.0, tuple(requests))
