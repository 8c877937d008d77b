"""Serving prompts from a file, on one rank or many: what `python -m pikv_runtime serve` does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.inbox import Inbox
from pikv_runtime.joining import Joined, joined_ranks
from pikv_runtime.metrics import as_json, read
from pikv_runtime.metrics_endpoint import MetricsEndpoint
from pikv_runtime.prompts import read_prompts
from pikv_runtime.requests import RequestList
from pikv_runtime.stopping import draining_on_signals

if TYPE_CHECKING:
    from pikv_runtime.engine import Engine


@dataclass(frozen=True)
class ServeOptions:
    """What to serve, and how."""

    prompts: Path | None
    """JSON lines; None: only what the journal knows."""
    model: str = "embedded"
    policy: str | None = None
    ranks: int = 1
    """Virtual ranks, where no others were started."""
    clock: Literal["model", "wall"] = "wall"
    config: RuntimeConfig = field(default_factory=RuntimeConfig)
    device: str = "cpu"
    """As `load_model` takes it; under torchrun `cuda` is one device for each process of the machine."""
    dtype: str = "float32"
    expert_parallel: bool = False
    """Spread expert weights over the processes of torchrun, too."""
    journal: Path | None = None
    timeout_s: float = 120.0
    """After which a rank that does not answer is lost."""
    drain_s: float = 30.0
    """After the first SIGTERM or SIGINT, what runs may go on for so long."""
    interface: str | None = None
    """Network interface of the links between ranks; None: loopback."""
    metrics_port: int | None = None
    """None: no endpoint. Rank r listens at `metrics_port` + r."""
    host: str = "127.0.0.1"
    """Address that the metrics endpoint listens at."""

    def __post_init__(self) -> None:
        if self.prompts is None and self.journal is None:
            raise ValueError("nothing to serve: give a file of prompts, or the journal of an earlier run, or both")
        if not self.drain_s >= 0:
            raise ValueError(f"drain_s={self.drain_s}: must not be negative")
        if self.metrics_port is not None and not 0 <= self.metrics_port < 65536:
            raise ValueError(f"metrics_port={self.metrics_port}: allowed 0..65535")


def serve(options: ServeOptions) -> dict[str, Any]:
    """Serve, until all is done or a signal ends it; returns texts, latencies, costs and metrics as one JSON object.

    Raises:
        ValueError: bad options, prompts or journal.
        RankLostError: another rank died, hangs or failed.
    """
    from pikv_runtime.models.loading import find_device, load_model

    device = find_device(options.device)
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    if tokenizer is None:
        raise ValueError(f"the model in {options.model} has no tokenizer, and prompts are texts")
    workload = RequestList("journal", 0.0, ())
    if options.prompts is not None:
        workload = read_prompts(options.prompts, tokenizer.encode, options.config.page_tokens)
    ranks = joined_ranks(options.ranks, device, timeout_s=options.timeout_s, interface=options.interface)
    inbox = Inbox(shared=True)
    with ranks as joined, draining_on_signals(inbox, options.drain_s), _endpoint(options, joined) as endpoint:
        from pikv_runtime.engine import Engine

        model = model.to(joined.device)
        if options.expert_parallel:
            from pikv_runtime.models.experts import spread_experts

            spread_experts(model, joined.device)
        engine = Engine(
            model, options.config, options.policy, clock=options.clock, transport=joined.transport,
            journal=options.journal, inbox=inbox,
        )  # fmt: skip
        try:
            return {"rank": joined.transport.rank, **_serve(engine, workload, tokenizer, endpoint)}
        finally:
            if engine.journal is not None:
                engine.journal.close()


@contextlib.contextmanager
def _endpoint(options: ServeOptions, joined: Joined) -> Iterator[MetricsEndpoint | None]:
    if options.metrics_port is None:
        yield None
        return
    rank = joined.transport.rank
    port = options.metrics_port + rank if options.metrics_port else 0
    endpoint = MetricsEndpoint(port, options.host, every_rank=rank == 0)
    try:
        yield endpoint
    finally:
        endpoint.close()


def _serve(engine: Engine, workload: RequestList, tokenizer: Any, endpoint: MetricsEndpoint | None) -> dict[str, Any]:
    from pikv_runtime.engine import NothingToServeError

    served = []
    try:
        for done in engine.run(workload, on_interval=endpoint.publish if endpoint is not None else None):
            served.append(done)
    except NothingToServeError:
        if not engine.journaled:
            raise
        return {"requests": [], "recovered": _recovered(engine, tokenizer), "refused": [], "unfinished": []}
    return {
        "requests": [
            {
                "id": s.request.request_id,
                "text": tokenizer.decode(s.output_ids.tolist()),
                "ttft_s": s.ttft_s,
                "tpot_s": s.tpot_s,
                "hit_tokens": s.hit_tokens,
                "preempted": s.preempted,
            }
            for s in sorted(served, key=lambda done: done.request.request_id)
        ],
        "recovered": _recovered(engine, tokenizer),
        "refused": sorted(r.request_id for r in engine.refused()),
        "unfinished": sorted(engine.progress.unfinished()),
        "costs": json.loads(engine.costs().to_json()),
        "metrics": as_json(read(engine)),
        "ranks": engine.transport.world,
        "wire": {"sent_bytes": dict(engine.transport.sent_bytes), "collectives": dict(engine.transport.collectives)},
    }


def _recovered(engine: Engine, tokenizer: Any) -> list[dict[str, Any]]:
    """Requests that were over when the journal was opened: they are not served again."""
    found = engine.recovered
    return [
        {"id": number, "how": how, "text": tokenizer.decode(found.said.get(number, []))}
        for number, how in sorted(found.ended.items())
    ]


def print_served(result: dict[str, Any]) -> None:
    """A short account for people."""
    for request in result["recovered"]:
        print(f"{request['id']:>4}  {request['how']} before  {_plain(request['text'])}")
    for request in result["requests"]:
        text = _plain(request["text"])
        print(f"{request['id']:>4}  ttft {request['ttft_s']:.3f} s  tpot {request['tpot_s'] * 1e3:.1f} ms  {text}")
    for name, why in (("refused", "refused, as they cannot fit under the cap"), ("unfinished", "unfinished")):
        if result[name]:
            print(f"{why}: {', '.join(map(str, result[name]))}")


def _plain(text: str) -> str:
    return text.replace("\n", "\\n")[:80]
