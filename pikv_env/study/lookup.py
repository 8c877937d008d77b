"""k · T_lookup + T_sync, measured: where the seconds of a decode step go, against fan-out, on one rank and on two.

One serve sweeps all fan-outs, changing at every decision, so that they are measured side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control, GlobalControl, Telemetry
from pikv_runtime.engine import Engine
from pikv_runtime.models import runner, step
from pikv_runtime.models.remote import RemoteReads
from pikv_runtime.models.segments import ForwardResult
from pikv_runtime.requests import Request, RequestList
from pikv_runtime.transport import LocalTransport, TorchDistTransport, Transport, run_ranks

FAN_OUTS = (1.0, 0.5, 0.25, 0.1, 0.05)
PARTS = ("score", "choose", "read", "messages", "outcome")
"""score and choose: the look-up of the read set; read: attention over pages; messages: questions and answers; outcome:
the all-gather at the iteration's end."""
COLUMNS = ("fan_out", "pages_read", "wall", "cpu", *(f"{p}_wall" for p in PARTS), *(f"{p}_cpu" for p in PARTS))
WARM_UP = 10
"""Decode iterations that are left out."""
CONFIG = RuntimeConfig(
    read="sparse", router="centroid", codec="bf16", audit_share=0.0, observe_tokens=1 << 20, interval_s=1e-3
)  # fmt: skip


@dataclass
class Sweep:
    """The next fan-out at every decision; otherwise neutral."""

    decisions: int = 0

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """Change nothing but the fan-out."""
        control = Control.neutral(len(telemetry.groups))
        control.globals[GlobalControl.FAN_OUT] = FAN_OUTS[self.decisions % len(FAN_OUTS)]
        self.decisions += 1
        if out is None:
            return control
        out.groups[:], out.globals[:] = control.groups, control.globals
        return out


class Stopwatch:
    """Wall and CPU seconds by part of one iteration, and pages read. CPU time is what other processes of a busy
    machine stretch least; waiting has none."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start an iteration."""
        self.wall_s, self.cpu_s, self.pages = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0), 0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed as `part`; the pages of a read set are counted."""

        def inner(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            result = function(*args, **kwargs)
            self.wall_s[part] += time.perf_counter() - wall
            self.cpu_s[part] += time.thread_time() - cpu
            if part == "choose":
                self.pages += int(result.sum())
            return result

        return inner


class TimedEngine(Engine):
    """Keeps a row of `COLUMNS` for every iteration that decoded `together` requests and did nothing else."""

    def __init__(self, model: Any, transport: Transport, together: int) -> None:
        super().__init__(model, CONFIG, Sweep(), transport=transport)
        self.stopwatch, self.together = Stopwatch(), together
        self.rows: list[list[float]] = []

    def _forward(self) -> ForwardResult:
        segments, clock = self._segments(), self.stopwatch
        clock.reset()
        wall, cpu = time.perf_counter(), time.thread_time()
        result = super()._forward()
        if len(segments) == self.together and all(segment.decode for segment in segments):
            fan_out = float(self.ledger.control_globals[0, GlobalControl.FAN_OUT])
            spent = [time.perf_counter() - wall, time.thread_time() - cpu]
            parts = [*clock.wall_s.values(), *clock.cpu_s.values()]
            self.rows.append([fan_out, clock.pages, *spent, *parts])
        return result


@contextmanager
def watched(clock: Stopwatch) -> Iterator[None]:
    """Time the parts of every forward pass until exit."""
    places: tuple[tuple[Any, str, str], ...] = (
        (step, "router_scores", "score"),
        (step, "read_sets", "choose"),
        (step, "answer", "read"),
        (RemoteReads, "send_questions", "messages"),
        (RemoteReads, "send_answers", "messages"),
        (runner, "share", "outcome"),
    )
    kept = [getattr(owner, name) for owner, name, _ in places]
    for owner, name, part in places:
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    try:
        yield
    finally:
        for (owner, name, _), function in zip(places, kept, strict=True):
            setattr(owner, name, function)


def random_model(layers: int = 8, hidden: int = 512, heads: int = 16, kv_heads: int = 4, experts: int = 16) -> Any:
    """A larger MoE with random weights, for mechanics only: what it attends to means nothing."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=264, hidden_size=hidden, intermediate_size=hidden // 2, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=64, num_local_experts=experts,
        num_experts_per_tok=2, max_position_embeddings=4096, sliding_window=None,
    )  # fmt: skip
    return MixtralForCausalLM(config).float().eval()


def _workload(requests: int, prompt_tokens: int, output_tokens: int) -> RequestList:
    rng = np.random.default_rng(0)
    blocks = np.zeros((prompt_tokens + output_tokens) // CONFIG.page_tokens, np.int64)
    return RequestList("lookup", 0.0, tuple(
        Request(i, 0.0, prompt_tokens, output_tokens, blocks,
                prompt_ids=rng.integers(0, 256, prompt_tokens).astype(np.int32))
        for i in range(requests)
    ))  # fmt: skip


def _serve(transport: Transport, model: Any, workload: RequestList) -> dict[str, NDArray]:
    engine = TimedEngine(model, transport, len(workload.requests))
    with watched(engine.stopwatch):
        for _ in engine.run(workload):
            pass
    return {"rows": np.array(engine.rows[WARM_UP:]), "wire": _wire(transport, engine, len(workload.requests))}


def _wire(transport: Transport, engine: Engine, requests: int, repeats: int = 300) -> NDArray:
    """Seconds of one exchange of the size of a layer's questions and of its answers: (2,), the fastest tenth of many,
    which found both ranks at work."""
    if transport.world == 1 or len(transport.local_ranks) > 1:
        return np.zeros(2)
    g, rows = engine.runner.geometry, -(-requests // transport.world)
    found = []
    for size in (rows * g.heads * g.head_dim * 4, rows * g.heads * (g.v_dim + 1) * 4):
        message = torch.zeros(size, dtype=torch.uint8)
        nothing = torch.zeros(0, dtype=torch.uint8)
        outgoing = [nothing if rank == transport.rank else message for rank in range(transport.world)]
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            transport.all_to_all([outgoing], [[m.nbytes for m in outgoing]], "control")
            seconds.append(time.perf_counter() - started)
        found.append(np.percentile(seconds, 10))
    return np.array(found)


def _rank(rank: int, world: int, model: Any, workload: RequestList) -> dict[str, NDArray]:
    return _serve(TorchDistTransport(), model, workload)


def lookup(
    model: Any, ranks: int, *, requests: int = 8, prompt_tokens: int = 1024, output_tokens: int = 160,
    timeout_s: float = 580.0,
) -> dict[str, Any]:  # fmt: skip
    """Decode `requests` together on `ranks` processes; medians over decode iterations, by fan-out, in ms.

    `step`, `score`, `choose`, `read` are CPU time and means over ranks; `messages` and `outcome` are wall time, so they
    hold the waiting for a rank that is late. `wire` is the same exchange of messages when nobody is.
    """
    workload = _workload(requests, prompt_tokens, output_tokens)
    if ranks == 1:
        found = [_serve(LocalTransport(1), model, workload)]
    else:
        found = run_ranks(_rank, ranks, model, workload, timeout_s=timeout_s)
    layers = int(model.config.num_hidden_layers)
    wire_ms = float(np.mean([f["wire"].sum() for f in found])) * layers * 1e3
    rows = [_row(found, fan_out, wire_ms) for fan_out in FAN_OUTS]
    return {
        "ranks": ranks, "layers": layers, "requests": requests, "prompt_tokens": prompt_tokens, "rows": rows,
        "per_page_us": _slope(rows),
    }  # fmt: skip


def _row(found: list[dict[str, NDArray]], fan_out: float, wire_ms: float) -> dict[str, Any]:
    mine = [f["rows"][np.isclose(f["rows"][:, 0], fan_out)] for f in found]
    typical = dict(zip(COLUMNS, np.mean([np.median(rows, axis=0) for rows in mine], axis=0).tolist(), strict=True))
    row: dict[str, Any] = {"fan_out": fan_out, "iterations": len(mine[0])}
    row |= {"step_ms": typical["cpu"] * 1e3, "step_wall_ms": typical["wall"] * 1e3}
    row |= {f"{part}_ms": typical[f"{part}_cpu"] * 1e3 for part in ("score", "choose", "read")}
    row |= {f"{part}_ms": typical[f"{part}_wall"] * 1e3 for part in ("messages", "outcome")}
    row |= {"messages_cpu_ms": typical["messages_cpu"] * 1e3, "wire_ms": wire_ms}
    row["pages_read"] = typical["pages_read"] * len(found)
    return row


def _slope(rows: list[dict[str, Any]]) -> float:
    """Microseconds that one more page read in one layer costs, least squares over fan-outs."""
    pages = np.array([row["pages_read"] for row in rows])
    return float(np.polyfit(pages, [row["read_ms"] * 1e3 for row in rows], 1)[0])
