"""A canary: of several equal servers one decides by the new policy, the others as before; requests are dealt out by
hash.

A control steers a whole cache, so two policies cannot share one engine: a page that one evicts is missing for the
other. What can be split is requests over servers, as a router in front of a fleet does. Every server has the same
hardware, an equal share of the cap and, but for chance, of the requests. How much chance that is, the servers without
the canary show: their range is printed beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pikv_agents.live import LAMBDAS
from pikv_env.pool import WorkloadPool
from pikv_runtime.engine import Engine, Served
from pikv_runtime.ledger.state import Status, Tally
from pikv_runtime.policy import load_policy
from pikv_runtime.requests import Request, RequestList, ServiceClass

METRICS = ("ttft_s", "tpot_s", "latency", "hit_share", "preemptions", "loss", "memory")
Row = dict[str, Any]


def server_of(request_id: int, servers: int, salt: str = "") -> int:
    """The server that a request goes to: by hash, the same for every policy and in every run."""
    digest = hashlib.sha256(f"canary:{salt}:{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % servers


def deal(workload: RequestList, servers: int, salt: str = "") -> list[RequestList]:
    """The requests of every server, in order of arrival."""
    hands: list[list[Request]] = [[] for _ in range(servers)]
    for request in workload.requests:
        hands[server_of(request.request_id, servers, salt)].append(request)
    return [
        replace(workload, name=f"{workload.name}, server {k}", requests=tuple(hand)) for k, hand in enumerate(hands)
    ]


@dataclass(frozen=True)
class Fleet:
    """Equal servers for the requests of a pool's first workload.

    Args:
        pool: Its workload is dealt out, so it should be `servers` times the load of one.
        servers: How many; the last one is the canary.
        pressure: Working set over the cap, of each.
    """

    pool: WorkloadPool
    servers: int
    pressure: float
    clock: Literal["model", "wall"] = "model"
    model: Any = "embedded"

    def __post_init__(self) -> None:
        if self.servers < 2:
            raise ValueError(f"servers={self.servers}: a canary needs at least 2, itself and one to compare with")

    def play(self, incumbent: str, canary: str) -> Iterator[Row]:
        """Serve, one server after the other; a row of metrics for each.

        Raises:
            ValueError: a server would get no request.
        """
        hands = deal(self.pool.prepared[0].workload, self.servers)
        idle = [k for k, hand in enumerate(hands) if not hand.requests]
        if idle:
            raise ValueError(
                f"servers={self.servers}: {len(idle)} of them would get no request; use fewer, or more load"
            )
        for k, hand in enumerate(hands):
            policy = canary if k == self.servers - 1 else incumbent
            yield {"server": k, "canary": k == self.servers - 1, "policy": policy, **self._serve(hand, policy)}

    def _serve(self, hand: RequestList, policy: str) -> Row:
        pool = self.pool
        prepared, config = pool.prepared[0], pool.config
        cap = max(prepared.floor_bytes, int(prepared.working_set_bytes / self.pressure / config.ranks / self.servers))
        runtime = replace(config.runtime, cap_bytes=cap, host_bytes=config.host_bytes(cap), blocks=pool.blocks)
        engine = Engine(
            self.model,
            runtime,
            load_policy(policy),
            config.ranks,
            clock=self.clock,
            prices=pool.prices,
            lambdas=LAMBDAS,
        )
        served = list(engine.run(hand, config.horizon_s * (1 + config.drain)))
        score, tally = engine.score(), engine.ledger.tally[0]
        done = int((engine.ledger.req_status[0, : len(hand.requests)] == Status.DONE).sum())
        return {
            "requests": len(hand.requests),
            "served": done,
            "ttft_s": float(np.mean([s.ttft_s for s in served])) if served else None,
            "tpot_s": float(np.mean([s.tpot_s for s in served])) if served else None,
            "latency": _latency(served, hand.classes),
            "hit_share": float(tally[Tally.HIT_TOKENS] / max(1.0, tally[Tally.PROMPT_TOKENS])),
            "preemptions": int(tally[Tally.PREEMPTIONS]),
            "loss": score.loss,
            "memory": score.memory,
            "fallback_decisions": getattr(engine.policy, "counters", {}).get("fallback_decisions", 0),
        }


def _latency(served: Sequence[Served], classes: Sequence[ServiceClass]) -> float | None:
    """The objective's latency of the served requests, not yet over that of U: less is better."""
    if not served:
        return None
    costs = []
    for s in served:
        c = classes[s.request.class_id]
        costs.append(c.weight * (s.ttft_s / c.slo_ttft_s + s.tpot_s / c.slo_tpot_s))
    return float(np.mean(costs))


def compare(rows: Sequence[Row]) -> list[Row]:
    """Per metric: the canary's value, the incumbents' mean and range, and on which side of the range it lies."""
    found = []
    for metric in METRICS:
        mine = next(row[metric] for row in rows if row["canary"])
        others = [row[metric] for row in rows if not row["canary"] and row[metric] is not None]
        if mine is None or not others:
            continue
        low, high = min(others), max(others)
        side = "below" if mine < low else "above" if mine > high else "within"
        found.append(
            {
                "metric": metric,
                "canary": mine,
                "incumbent": float(np.mean(others)),
                "low": low,
                "high": high,
                "range": side,
            }
        )
    return found
