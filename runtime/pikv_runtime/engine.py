"""The engine: schedule → forward → telemetry → control → postprocess, over the ledger's lane 0.

Every rank runs the same engine on a replica of the ledger; only the forward pass differs. Rank 0 decides and the
decision is broadcast, in wall-clock mode with the time each iteration took.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pikv_runtime import ledger as L
from pikv_runtime.block_rules import Orders, orders_of
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.control_loop import ControlLoop
from pikv_runtime.episode import begin
from pikv_runtime.inbox import Inbox, Stage
from pikv_runtime.journal import Journal, Recovered
from pikv_runtime.ledger.drive import Bank, next_event_s, put_into_force, replay_signals
from pikv_runtime.ledger.rule_room import with_orders
from pikv_runtime.ledger.state import NO_CAP, Status
from pikv_runtime.models.segments import CacheView, ForwardResult, Segment
from pikv_runtime.objective import LAMBDA1, LAMBDA2, Reference, Score, score
from pikv_runtime.policy.base import Policy, PolicyLike, prepare
from pikv_runtime.policy.loading import as_policy
from pikv_runtime.profiles import load_profile
from pikv_runtime.progress import Progress
from pikv_runtime.requests import Request, Workload
from pikv_runtime.resume import go_on, join, model_name, shared_recovery
from pikv_runtime.served import Served, Timers, with_status
from pikv_runtime.serving_log import ServingRecorder
from pikv_runtime.transcripts import Transcripts
from pikv_runtime.transport import LocalTransport, Transport

__all__ = ["Engine", "NothingToServeError", "Served", "Timers"]


class NothingToServeError(ValueError):
    """The workload is empty, or the journal knows that all of it is over."""


class Engine:
    """Serves workloads with an MoE model over the paged, expert-sharded cache.

    Args:
        model: a Hugging Face MoE model, `"embedded"`, or a path.
        config: the runtime's configuration.
        policy: a spec (`"lazy/h2o"`), a bundle's folder, an object with `decide`, a function from telemetry to control,
            or None: the configured ranker, nothing lossy.
        ranks: logical ranks; played by this process unless `transport` says otherwise.
        clock: `"model"` (deterministic, from the profile) or `"wall"` (measured; idle time is skipped).
        profile: prices of the model clock, and of the policy's telemetry on either clock.
        prices: the same as a row of the ledger (`Profile.prices`); takes the profile's place.
        signals: recorded signals to feed the ledger instead of the live ones (level-A parity).
        lambdas: prices of memory and of lost fidelity.
        journal: file of unfinished requests, see `Journal`; on several processes rank 0 alone opens it. What it says
            is unfinished is served too, from where it stood; what is over is not served again.
        inbox: where others ask to cancel requests or to stop; by default one that reaches this process only.
    """

    def __init__(
        self,
        model: Any,
        config: RuntimeConfig,
        policy: PolicyLike = None,
        ranks: int = 1,
        *,
        clock: Literal["model", "wall"] = "model",
        profile: str = "cpu-gloo",
        prices: NDArray[np.float64] | None = None,
        signals: Bank | None = None,
        transport: Transport | None = None,
        lambdas: tuple[float, float] = (LAMBDA1, LAMBDA2),
        journal: str | os.PathLike[str] | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        if clock not in ("model", "wall"):
            raise ValueError(f"clock={clock!r}: allowed are 'model' and 'wall'")
        if isinstance(model, str):
            from pikv_runtime.models import load_model

            model = load_model(model)[0]
        self.model, self.config, self.clock = model, config, clock
        self.transport = transport if transport is not None else LocalTransport(ranks)
        self.policy = as_policy(policy, config.ranker, config.window_pages)
        self.signals, self.lambdas = signals, lambdas
        self.prices = load_profile(profile).prices() if prices is None else prices
        self.recorder: ServingRecorder | None = None
        self._swaps = deque[Policy](maxlen=1)
        self.inbox = inbox if inbox is not None else Inbox()
        self.journaled = journal is not None
        self.journal = Journal(journal) if journal is not None and 0 in self.transport.local_ranks else None

    ledger: L.Ledger
    _policy: Policy
    _orders: Orders

    @property
    def policy(self) -> Policy:
        """Who decides. Another one may be set between two intervals: its block rule begins with what is cached. On
        rank 0 a policy that lives in a process of its own is started.

        Raises:
            ValueError: set to one whose orders know the future.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        orders = orders_of(policy, self.config.block_rule)
        if orders.offline:
            raise ValueError(
                f"policy {getattr(policy, 'name', policy)!r}: {orders.offline!r} knows the future; only the trace "
                "environment can play it"
            )
        if 0 in self.transport.local_ranks:
            prepare(policy)
        self._policy = policy
        if hasattr(self, "ledger") and orders != self._orders:
            self.ledger = with_orders(self.ledger, 0, orders)
        self._orders = orders

    def swap(self, policy: Policy) -> None:
        """Set `policy` before the next decision. From any thread: a bundle is loaded and compiled while requests are
        served. With several ranks, every rank has to swap in the same interval."""
        self._swaps.append(policy)

    @property
    def orders(self) -> Orders:
        """Block rule in force."""
        return self._orders

    # ------------------------------------------------------------------ loading

    def load(self, workload: Workload, reference: Reference | None = None, pages: int = 0) -> None:
        """Make a fresh ledger and fresh tensors for `workload`; runs U on the model clock unless it is given.

        `pages`: least pages of a request that the ledger has room for (two ledgers of one size can be compared).
        """
        from pikv_runtime.models.runner import ModelRunner, geometry_of_model

        if self.signals is None and any(r.prompt_ids is None for r in workload.requests):
            raise ValueError("a live run needs prompt_ids in every request")
        self.recovered = shared_recovery(self.transport, self.journal) if self.journaled else Recovered()
        if self.journal is not None:
            self.journal.accept(workload.requests, page_tokens=self.config.page_tokens, model=model_name(self.model))
        workload = join(workload, self.recovered)
        if not workload.requests:
            raise NothingToServeError(f"workload {workload.name!r}: no request is left to be served")
        geometry = geometry_of_model(self.model, self.config.latent)
        self.ledger, self.reference = begin(
            workload, self.config, geometry, self._orders, self.prices, self.lambdas,
            ranks=self.transport.world, signals=self.signals, reference=reference, pages=pages,
        )  # fmt: skip
        self.observations = L.observations(self.ledger, 0)
        self.runner = ModelRunner(self.model, self.config, self.transport, blocks=self.ledger.block_hash.shape[1])
        self.transcripts, self.timers = Transcripts(workload.requests), Timers()
        self.control_loop = ControlLoop(self.ledger.control_groups.shape[1], self.transport, self.timers)
        go_on(self.ledger, self.transcripts, self.recovered)
        self.progress = Progress(self.transcripts, self.recovered, self.journal)
        self._tenants: dict[int, tuple[int, int]] = {}
        self.stage = Stage.SERVE

    # ------------------------------------------------------------------ serving

    def run(
        self,
        workload: Workload,
        limit_s: float = float("inf"),
        on_interval: Callable[[Engine], None] | None = None,
    ) -> Iterator[Served]:
        """Serve `workload`, yielding each request when it finishes; stops at `limit_s` on the engine's clock.

        `on_interval` is called after every control interval, with this engine: to publish its metrics, say.
        """
        self.load(workload)
        done = False
        self.measure()
        while not done:
            self.decide()
            done = self.run_interval(limit_s)
            self.measure()
            yield from self.progress.finished(self.ledger)
            if on_interval is not None:
                on_interval(self)
        self.close()

    def run_interval(self, limit_s: float = float("inf")) -> bool:
        """Serve until the control interval ends. Returns whether the episode is over."""
        s = self.ledger
        while s.clock_s[0] < s.interval_end_s[0] and s.unfinished[0] > 0 and s.clock_s[0] < limit_s:
            if self.stage == Stage.STOP:
                return True
            self.step(min(float(s.interval_end_s[0]), limit_s))
        while s.interval_end_s[0] <= s.clock_s[0]:
            s.interval_end_s[0] += s.interval_s[0]
        return bool(s.unfinished[0] <= 0 or s.clock_s[0] >= limit_s)

    def step(self, end_s: float) -> None:
        """One iteration, or a jump to the next event where there is nothing to do."""
        started, timers = time.perf_counter(), self.timers
        before_s = timers.forward_s + timers.tensors_s
        put_into_force(self.ledger, 0)
        self._heed()
        if self.stage == Stage.STOP:
            return
        if not self._schedule():
            L.advance(self.ledger, 0, max(1e-9, next_event_s(self.ledger, 0, end_s) - self.ledger.clock_s[0]))
            return
        result = self._forward()
        self._signal(result)
        self._postprocess(result, started)
        timers.ledger_s += time.perf_counter() - started - (timers.forward_s + timers.tensors_s - before_s)

    def decide(self) -> Control:
        """Ask the policy (on rank 0), broadcast its control and put it into force, after the control latency."""
        if self._swaps:
            self.policy = self._swaps.popleft()
        control = self.control_loop.decide(self.policy)
        self.enforce(control)
        return control

    def enforce(self, control: Control) -> None:
        """Put rank 0's `control` into force on every rank, after the control latency."""
        self.control_loop.enforce(self.ledger, control)
        if self.recorder is not None:
            self.recorder.decided(self.telemetry(), control)

    def measure(self) -> Telemetry:
        """Write the telemetry of the interval just ended."""
        return self.control_loop.measure(self.ledger)

    def close(self) -> None:
        """End the episode: charge whoever is unserved, free the tensors of whoever is done."""
        self._follow_tenants()
        self._apply_events()
        L.close(self.ledger, 0, self.reference.charges, self.observations)

    # ------------------------------------------------------------------ the parts of a step

    def _heed(self) -> None:
        """Do what was asked from outside: cancel, drain, stop."""
        heard = self.inbox.look(self.transport)
        for q in heard.cancelled:
            self.progress.cancel(self.ledger, q)
        if heard.stage == Stage.DRAIN and self.stage == Stage.SERVE:
            self.progress.suspend(self.ledger)
        self.stage = heard.stage

    def _schedule(self) -> int:
        """Plan an iteration; make tensors agree with what the ledger has decided since the last one."""
        tokens = int(L.plan(self.ledger, 0))
        self._follow_tenants()
        started = time.perf_counter()
        self._apply_events()
        self.timers.tensors_s += time.perf_counter() - started
        return tokens

    def _forward(self) -> ForwardResult:
        started = time.perf_counter()
        result = self.runner.forward(self._segments(), CacheView.of(self.ledger))
        self.timers.forward_s += time.perf_counter() - started
        return result

    def _signal(self, result: ForwardResult) -> None:
        """Tell the ledger what the forward pass found out: attention mass, late-bound tags, codec errors."""
        s = self.ledger
        if self.signals is not None:
            replay_signals(s, 0, self.signals)
            return
        pages = s.page_block.shape[2]
        for seen in sorted(result.observations, key=lambda o: o.slot):
            pad = ((0, 0), (0, pages - seen.mass.shape[1]))
            L.observe(s, 0, seen.slot, np.pad(seen.mass, pad), np.pad(seen.score, pad))
        for filled in sorted(result.filled, key=lambda f: (f.slot, f.page)):
            block = s.page_block[0, filled.slot, filled.page]
            L.tag_page(s, 0, block, filled.tags, filled.errors)
            if filled.also is not None and filled.also.size:
                L.also_chosen(s, 0, block, filled.also)

    def _postprocess(self, result: ForwardResult, started: float) -> None:
        """Record tokens, let time pass, commit the iteration."""
        s, recorder, spoke = self.ledger, self.recorder, list[int]()
        for slot, token in result.next_tokens.items():
            q = int(s.slot_request[0, slot])
            if s.slot_tokens[0, slot] + s.slot_plan[0, slot] >= s.slot_target[0, slot]:
                self._append(q, token)
                spoke.append(q)
        seconds = self._elapsed(started)
        if recorder is not None:
            recorder.planned(s, result)
        L.commit(s, 0, seconds)
        if recorder is not None:
            recorder.committed(s, seconds)
        self.progress.said(spoke, float(s.clock_s[0]))

    def _elapsed(self, started: float) -> float:
        """Seconds of the iteration on the clock in use, the same on every rank."""
        if self.clock == "model":
            return float(L.price(self.ledger, 0))
        # Between two iterations lie telemetry, decision and control: the next one pays for them.
        elapsed = torch.tensor([time.perf_counter() - started + self.control_loop.unpaid_s], dtype=torch.float64)
        self.ledger.pending_s[0] = self.control_loop.unpaid_s = 0.0
        return float(self.transport.broadcast(elapsed)[0])

    def _append(self, q: int, token: int) -> None:
        self.transcripts.append(q, token, bool(self.ledger.req_audited[0, q]))

    def _segments(self) -> list[Segment]:
        return self.transcripts.segments(self.ledger)

    def _apply_events(self) -> None:
        count = int(self.ledger.event_count[0])
        if count:
            self.runner.apply_events(self.ledger.events[0, :count].copy())
            self.ledger.event_count[0] = 0

    def _follow_tenants(self) -> None:
        """Drop the exact shadow of every request that left its slot."""
        s = self.ledger
        for r in range(s.slot_request.shape[1]):
            q = int(s.slot_request[0, r])
            tenant = (q, int(s.req_preempted[0, q]) if q >= 0 else 0)
            if r in self._tenants and self._tenants[r] != tenant:
                self.runner.drop_shadow(r)
            self._tenants[r] = tenant

    # ------------------------------------------------------------------ results

    @property
    def requests(self) -> Sequence[Request]:
        """Requests of the workload being served, by number."""
        return self.transcripts.requests

    @property
    def outputs(self) -> list[list[int]]:
        """Tokens that each request has generated so far."""
        return self.transcripts.outputs

    @property
    def control_log(self) -> list[bytes]:
        """Bytes of every control enforced so far."""
        return self.control_loop.log

    def refused(self) -> list[Request]:
        """Requests that could never fit under the cap, turned away when they arrived."""
        return [self.requests[q] for q in with_status(self.ledger, Status.REFUSED)]

    def cancelled(self) -> list[Request]:
        """Requests whose clients were gone, in the order in which they were cancelled."""
        return [self.requests[q] for q in self.progress.cancelled]

    def cancel(self, request_id: int) -> None:
        """Its client is gone: cancel a request before the next iteration. Nothing happens if it is over by then.

        May be called from any thread. Its pages are free at once; what it shared stays for others.

        Raises:
            ValueError: no such request is being served, or ranks in other processes would not hear of it.
        """
        if not self.inbox.shared and len(self.transport.local_ranks) < self.transport.world:
            raise ValueError("cancel: ranks in other processes hear of it only with inbox=Inbox(shared=True) on each")
        self.inbox.cancel(self.progress.number(request_id))

    def telemetry(self) -> Telemetry:
        """Telemetry of the last interval."""
        return self.control_loop.telemetry

    def score(self) -> Score:
        """J of the episode so far, final after `run`. Memory is taken relative to the cap (or to U's peak)."""
        cap = float(self.ledger.cap_bytes[0])
        total = cap * self.transport.world if cap < NO_CAP else max(1.0, self.reference.live_bytes_peak)
        return score(self.ledger.tally[0], self.reference, total, *self.lambdas)

    def costs(self) -> Any:
        """The episode's costs in physical units."""
        from pikv_runtime.costs import breakdown

        return breakdown(self.ledger, 0, self.reference, audit_bytes=self.runner.shadows.peak_bytes)
