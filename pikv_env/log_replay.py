"""Replaying the log of a live run through the simulator.

Given the log's iteration times and signals the simulator must make every admission, eviction, demotion and decision of
the live run again; `replay_log` says where it first does not. With times from the price list instead, `model_log` says
how far the simulator would have been off: the part of the error that prices are to blame for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.outcomes import ledger_outcome, logged_outcome, reference_of
from pikv_runtime import ledger as L
from pikv_runtime.block_rules import Orders, make_block_rule
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, Telemetry, clip_control
from pikv_runtime.ledger.drive import Bank, next_event_s, put_into_force, run_interval, stage
from pikv_runtime.ledger.rule_room import with_orders
from pikv_runtime.ledger.setup import Shape
from pikv_runtime.ledger.state import Ledger, Tally
from pikv_runtime.policy import load_policy
from pikv_runtime.policy.base import Policy
from pikv_runtime.serving_log import CLASSES, COMPARED, REQUESTS, LogError, ServingLog, checksums

F8 = NDArray[np.float64]


@dataclass(frozen=True)
class LogReplay:
    """What came of replaying a log."""

    iterations: int
    """Iterations that were replayed."""
    first_difference: str
    """Where the simulator first differs, and in which array; empty: nowhere."""
    decided_by: str
    """`policy`: it decided anew, on the simulator's telemetry; `log`: its controls were taken."""
    logged: dict[str, float]
    replayed: dict[str, float]

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return not self.first_difference


def ledger_of(log: ServingLog) -> Ledger:
    """A ledger of one lane as the run had it before its first decision; request r replays content r.

    Raises:
        LogError: its configuration or its arrays fit no ledger.
    """
    header, arrays = log.header, log.arrays
    try:
        config, shape = RuntimeConfig(**header["config"]), Shape(**_tuples(header["shape"]))
        count = len(arrays["req_arrival_s"])
        s = L.build(config, shape, (), requests=count, pages=int(header["pages"]), ranks=int(header["ranks"]))
        for name in REQUESTS:
            getattr(s, name)[0] = arrays[name]
        for name in (*CLASSES, "prices", "lambdas"):
            getattr(s, name)[0] = arrays[name]
        s.req_content[0] = np.arange(count)
        s.cap_bytes[0], s.host_cap[0] = int(header["cap_bytes"]), int(header["host_bytes"])
        s.observe_salt[0] = int(header["observe_salt"])
        s.num_requests[0] = s.unfinished[0] = count
        return with_orders(s, 0, Orders(make_block_rule(str(header["block_rule"]))))
    except (KeyError, TypeError, ValueError) as error:
        raise LogError(f"no ledger can be built from this log: {error}") from None


def _tuples(shape: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in shape.items()}


def policy_of(log: ServingLog) -> Policy | None:
    """The policy that the log names, able to decide again; None where it names none."""
    name = str(log.header.get("policy", ""))
    return load_policy(name) if name else None


def replay_log(log: ServingLog, policy: Policy | None = None) -> LogReplay:
    """Replay `log` with its own iteration times and signals, compared after every iteration.

    Args:
        log: of a live run, on either clock.
        policy: decides on the simulator's telemetry, and must ask for what the log says; None: the log's controls.
    """
    player = LogPlayer(log, policy)
    difference = player.play()
    s = player.state
    if not difference:
        L.close(s, 0, reference_of(log).charges, L.observations(s, 0))
        wrong = np.flatnonzero(s.tally[0] != log.arrays["final_tally"])
        difference = f"end: tally {Tally(int(wrong[0])).name.lower()}" if len(wrong) else ""
    return LogReplay(player.t, difference, "policy" if policy else "log", logged_outcome(log), ledger_outcome(log, s))


def model_log(log: ServingLog, policy: Policy | None = None, prices: F8 | None = None) -> dict[str, float]:
    """Serve the log's requests in the simulator on the model clock, with the log's signals; what it comes to.

    Args:
        log: of a live run.
        policy: decides; None: the log's controls, interval by interval (the last one for any beyond).
        prices: (len(Price),) a row of the ledger; None: the log's own.

    Raises:
        LogError: of a run that kept copies of pages, of which recorded signals know nothing.
    """
    if log.header["config"].get("write") == "copies":
        raise LogError("the log is of a run with write='copies', which only an exact replay can play")
    s, bank, a = ledger_of(log), bank_of(log), log.arrays
    if prices is not None:
        s.prices[0] = prices
    told, control = _telemetry(s), Control.neutral(s.control_groups.shape[1])
    done, k, last = False, 0, len(a["decided_at"]) - 1
    while not done:
        if policy is None:
            control.groups[:], control.globals[:] = (
                a["decided_groups"][min(k, last)],
                a["decided_globals"][min(k, last)],
            )
        else:
            policy.decide(told, control)
        clip_control(control)
        stage(s, 0, control.groups, control.globals)
        done = run_interval(s, 0, bank, float(log.header["limit_s"]))
        L.write_telemetry(s, 0, told.groups, told.globals)
        k += 1
    L.close(s, 0, reference_of(log).charges, L.observations(s, 0))
    return ledger_outcome(log, s)


def bank_of(log: ServingLog) -> Bank:
    """The log's signals by request, as recorded traces are kept by content.

    A page that a request found in the cache, and so did not fill, has the tags of whoever filled it. Where a request
    was not observed as often as it could be, its last observation before stands in; before the first, nothing.
    """
    a, header = log.arrays, log.header
    count, pages, layers = len(a["req_arrival_s"]), int(header["pages"]), int(header["shape"]["layers"])
    tags = np.full((count, layers, pages), -1, np.int8)
    errors = np.zeros((count, pages, layers, a["errors"].shape[2]), np.float32)
    rows = {int(a["req_hashes"][q, p]): i for i, (q, p) in enumerate(_filled(a))}
    for q, p in np.argwhere(a["req_hashes"] != 0).tolist():
        i = rows.get(int(a["req_hashes"][q, p]))
        if i is not None:
            tags[q, :, p], errors[q, p] = a["tags"][i], a["errors"][i]
    for i, (q, p) in enumerate(_filled(a)):
        tags[q, :, p], errors[q, p] = a["tags"][i], a["errors"][i]
    return Bank(tags, errors, *_observations(log, count, layers, pages))


def _filled(a: dict[str, NDArray[Any]]) -> list[tuple[int, int]]:
    return list(zip(a["filled_request"].tolist(), a["filled_page"].tolist(), strict=True))


def _observations(log: ServingLog, count: int, layers: int, pages: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mass and score (R, O, L, P)."""
    a, every = log.arrays, int(log.header["config"]["observe_tokens"])
    most = max(1, int(-(-int(a["req_output"].max()) // every)))
    mass, score_ = (np.zeros((count, most, layers, pages), np.float32) for _ in range(2))
    seen = np.zeros(count, np.int64)  # in the order of their steps: the next one of each request
    for i, q in enumerate(a["seen_request"].tolist()):
        mass[q, seen[q] :], score_[q, seen[q] :] = a["mass"][i], a["score"][i]
        seen[q] += 1
    return mass, score_


class LogPlayer:
    """Plays a log iteration by iteration; `play` returns the first difference."""

    def __init__(self, log: ServingLog, policy: Policy | None) -> None:
        self.log, self.policy, self.state, self.t = log, policy, ledger_of(log), 0
        a = log.arrays
        self.told = _telemetry(self.state)
        self.control = Control.neutral(self.state.control_groups.shape[1])
        steps = np.arange(log.iterations + 1)
        self._seen, self._filled = (np.searchsorted(a[name], steps) for name in ("seen_at", "filled_at"))
        self._limit_s = float(log.header["limit_s"])

    def play(self) -> str:
        """Play the log to its end; where the simulator first differs, or nothing."""
        s = self.state
        for d, at in enumerate(self.log.arrays["decided_at"].tolist()):
            if at != self.t:
                return f"decision {d}: after {self.t} iterations, in the log after {at}"
            found = self._decide(d) or self._interval()
            if found:
                return found
            L.write_telemetry(s, 0, self.told.groups, self.told.globals)
        missing = self.log.iterations - self.t
        return f"iteration {self.t}: over, {missing} iterations before the log" if missing else ""

    def planned(self) -> None:
        """Called when an iteration is planned, before its signals are fed; for those who count its work."""

    def _decide(self, d: int) -> str:
        a = self.log.arrays
        for name in ("groups", "globals"):
            if not np.array_equal(getattr(self.told, name), a[f"told_{name}"][d]):
                return f"decision {d}: telemetry"
        groups, globals_ = a["decided_groups"][d], a["decided_globals"][d]
        if self.policy is not None:
            self.policy.decide(self.told, self.control)
            clip_control(self.control)
            if not (np.array_equal(self.control.groups, groups) and np.array_equal(self.control.globals, globals_)):
                return f"decision {d}: control"
        stage(self.state, 0, groups, globals_)
        return ""

    def _interval(self) -> str:
        s = self.state
        end_s = min(float(s.interval_end_s[0]), self._limit_s)
        while s.clock_s[0] < end_s and s.unfinished[0] > 0 and self.t < self.log.iterations:
            put_into_force(s, 0)
            if L.plan(s, 0) == 0:
                L.advance(s, 0, max(1e-9, next_event_s(s, 0, end_s) - s.clock_s[0]))
                continue
            found = self._iteration()
            if found:
                return f"iteration {self.t}: {found}"
            self.t += 1
        while s.interval_end_s[0] <= s.clock_s[0]:
            s.interval_end_s[0] += s.interval_s[0]
        return ""

    def _iteration(self) -> str:
        """Commit the planned iteration as logged; the first array that differs, or nothing."""
        s, a, t = self.state, self.log.arrays, self.t
        if not np.array_equal(s.slot_plan[0], a["plan"][t]):
            return "plan"
        self.planned()
        feed(s, a, slice(self._seen[t], self._seen[t + 1]), slice(self._filled[t], self._filled[t + 1]))
        seconds = float(a["seconds"][t])
        if self.log.header["clock"] == "model":
            if L.price(s, 0) != seconds:
                return "seconds"
        else:
            s.pending_s[0] = 0.0
        L.commit(s, 0, seconds)
        wrong = np.flatnonzero(checksums(s) != a["checks"][t])
        return COMPARED[int(wrong[0])] if len(wrong) else ""


def feed(s: Ledger, a: dict[str, NDArray[Any]], seen: slice, filled: slice) -> None:
    """Tell the ledger what the logged iteration found out, in the order in which the engine did."""
    for slot, mass, scores in zip(a["seen_slot"][seen], a["mass"][seen], a["score"][seen], strict=True):
        L.observe(s, 0, int(slot), mass, scores)
    rows = zip(*(a[name][filled] for name in ("filled_slot", "filled_page", "tags", "errors", "also")), strict=True)
    for slot, page, tags, errors, also in rows:
        L.tag_page(s, 0, s.page_block[0, slot, page], tags, errors)
        if also.size:
            L.also_chosen(s, 0, s.page_block[0, slot, page], also)


def _telemetry(s: Ledger) -> Telemetry:
    told = Telemetry.zeros(s.control_groups.shape[1])
    L.write_telemetry(s, 0, told.groups, told.globals)
    return told
