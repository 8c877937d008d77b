"""One live run, in one process or in several: the same episode as in the trace environment, really served."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pikv_env.pool import WorkloadPool
from pikv_env.runtime_env import RuntimeEnv
from pikv_runtime.ledger.state import Tally
from pikv_runtime.policy import Watch
from pikv_runtime.serving_log import ServingRecorder
from pikv_runtime.transport import PURPOSES, LocalTransport, TorchDistTransport, Transport, run_ranks

Clock = Literal["model", "wall"]


@dataclass(frozen=True)
class LiveResult:
    """What a live run measured."""

    policy: str
    ranks: int
    clock: str
    J: float
    latency: float
    memory: float
    loss: float
    seconds: float
    """Wall time of serving."""
    tokens_per_second: float
    """Output tokens over wall time."""
    decision_us: float
    """Mean wall time of a decision on rank 0."""
    decision_share: float
    """Decision time over serving time."""
    intervals: int
    iterations: int
    hit_rate: float
    bytes_mean: float
    """Resident bytes of all ranks, mean over the run's clock."""
    busy_s: float
    """Seconds of the run's clock that iterations took."""
    preemptions: int
    controls_identical_on_ranks: bool
    fallback_decisions: int
    """Decisions that the guard took away from the policy."""
    shadow: dict[str, Any]
    """What a shadow would have changed; empty without one."""
    wire_bytes: dict[str, int]

    @property
    def fidelity(self) -> float:
        """F."""
        return 1.0 - self.loss


def _rank_of(
    rank: int, world: int, pool: WorkloadPool, options: dict[str, Any], policy: str, clock: Clock, model: Any,
    record: Path | None, watch: Watch | None,
) -> dict[str, np.ndarray]:  # fmt: skip
    return _serve(TorchDistTransport(), pool, options, policy, clock, model, record, watch)


def _serve(
    transport: Transport, pool: WorkloadPool, options: dict[str, Any], policy: str, clock: Clock, model: Any,
    record: Path | None, watch: Watch | None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Serve one episode on this process's ranks; returns arrays only, so that nothing needs unpickling."""
    from pikv_runtime.policy import load_policy

    loaded, watched = load_policy(policy), None
    if watch is not None and 0 in transport.local_ranks:  # the rank that decides
        watched = watch.over(loaded, policy)
        loaded = watched.policy
    env = RuntimeEnv(
        pool.library,
        model=model,
        clock=clock,
        config=pool.config,
        pool=pool,
        transport=transport,
    )
    env.reset(seed=0, options=options)
    engine = env.engine
    assert engine is not None
    engine.policy = loaded
    limit_s = pool.config.horizon_s * (1 + pool.config.drain)
    recorder = None
    if record is not None and 0 in transport.local_ranks:  # what is logged is the same on every rank
        recorder = ServingRecorder(engine, policy, limit_s, origin=pool.config.families[0])
    started, done = time.perf_counter(), False
    while not done:
        engine.decide()
        done = engine.run_interval(limit_s)
        engine.measure()
    seconds = time.perf_counter() - started
    engine.close()
    if recorder is not None and record is not None:
        recorder.log().save(record)
    report = {} if watched is None else watched.close()
    score = engine.score()
    s = engine.ledger
    state = (s.bytes_rank[0], s.req_status[0], s.req_finish_s[0], s.req_generated[0])
    replicated = [*engine.control_log, *(np.ascontiguousarray(array).tobytes() for array in state)]
    digest = hashlib.sha256(b"".join(replicated)).digest()
    guard = getattr(engine.policy, "counters", {})
    wire = transport.sent_bytes
    return {
        "score": np.array([score.J, score.latency, score.memory, score.loss]),
        "tally": engine.ledger.tally[0].copy(),
        "digest": np.frombuffer(digest, np.uint8),
        "seconds": np.array([seconds, engine.timers.decision_s, engine.timers.decisions]),
        "clock": engine.ledger.clock_s[:1].copy(),
        "tokens": np.array([sum(len(o) for o in engine.outputs)]),
        "guard": np.array([guard.get("fallback_decisions", 0)]),
        "shadow": np.frombuffer(json.dumps(report).encode(), np.uint8),
        "wire": np.array([wire[k] for k in sorted(wire)]),
    }


def run_live(
    pool: WorkloadPool,
    policy: str,
    *,
    workload: int = 0,
    pressure: float = 2.0,
    lambdas: tuple[float, float],
    clock: Clock = "wall",
    processes: bool = True,
    model: Any = "embedded",
    timeout_s: float = 600.0,
    record: Path | None = None,
    watch: Watch | None = None,
) -> LiveResult:
    """Serve one prepared workload under `policy` and measure.

    Args:
        pool: prepared workloads; its configuration says how many ranks.
        policy: a heuristic's spec, or a bundle's folder.
        workload, pressure, lambdas: the episode.
        clock: wall (measured) or model.
        processes: one process per rank over gloo; else one process plays all ranks.
        model: loaded, by name or by path.
        timeout_s: limit of a run in processes.
        record: file (`.npz`) for the run's serving log; None: no log.
        watch: what to keep of the decisions on rank 0: a log of them, what a shadow would have decided.
    """
    ranks = pool.config.ranks
    options = {"workload": workload, "pressure": pressure, "lambdas": lambdas}
    args = (pool, options, policy, clock, model, record, watch)
    if processes and ranks > 1:
        parts = run_ranks(_rank_of, ranks, *args, timeout_s=timeout_s)
    else:
        parts = [_serve(LocalTransport(ranks), *args)]
    return _result(parts, policy, ranks, clock)


def _result(parts: list[dict[str, np.ndarray]], policy: str, ranks: int, clock: str) -> LiveResult:
    first = parts[0]
    J, latency, memory, loss = first["score"].tolist()
    seconds, decision_s, decisions = first["seconds"].tolist()
    tally = first["tally"]
    wire = np.sum([p["wire"] for p in parts], axis=0)
    return LiveResult(
        policy=policy,
        ranks=ranks,
        clock=clock,
        J=J,
        latency=latency,
        memory=memory,
        loss=loss,
        seconds=seconds,
        tokens_per_second=float(first["tokens"][0]) / seconds,
        decision_us=decision_s / max(1, decisions) * 1e6,
        decision_share=decision_s / seconds,
        intervals=int(decisions),
        iterations=int(tally[Tally.ITERATIONS]),
        hit_rate=float(tally[Tally.HIT_TOKENS] / max(1.0, tally[Tally.PROMPT_TOKENS])),
        bytes_mean=float(tally[Tally.BYTE_SECONDS] / max(1e-9, first["clock"][0])),
        busy_s=float(tally[Tally.BUSY_S]),
        preemptions=int(tally[Tally.PREEMPTIONS]),
        controls_identical_on_ranks=all(np.array_equal(p["digest"], first["digest"]) for p in parts),
        fallback_decisions=int(first["guard"][0]),
        shadow=json.loads(first["shadow"].tobytes()),
        wire_bytes=dict(zip(sorted(PURPOSES), wire.tolist(), strict=True)),
    )
