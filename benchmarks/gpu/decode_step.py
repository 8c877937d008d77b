"""One decode step of a Mixture-of-Experts model on the kernels, random weights, captured into one CUDA graph.

What the engine computes on the device in a step: projections, storing, choosing, paged attention, gate, experts. The
engine's own planning (page tables, ledger) is host work and is measured by the serving section.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from gpu.cases import random_payload, tables
from gpu.report import Context, OutOfTimeError, Report, median_us
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from pikv_kernels import (
    PagePool,
    biased_gate,
    centroid_scores,
    listed,
    paged_decode_attention,
    read_set,
    store_tokens,
)

GEOMETRIES = Path(__file__).resolve().parents[2] / "runtime" / "pikv_runtime" / "profiles" / "geometries"
MOST_KV_BYTES = 40e9
CASES = (
    ("qwen3-30b-a3b", 2, ((1, 8), (1, 128), (16, 32), (64, 8), (64, 64))),
    ("olmoe-1b-7b", 1, ((1, 8), (1, 128), (16, 32), (64, 8))),
)
"""Geometry, layers, and (batch, thousands of tokens)."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a step needs to know of a model."""

    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    experts: int
    chosen: int
    expert_width: int
    layers: int

    @staticmethod
    def of(name: str) -> Shape:
        facts = json.loads((GEOMETRIES / f"{name}.json").read_text())
        width = facts["expert_parameters"] // (3 * facts["hidden_size"])
        names = ("hidden_size", "query_heads", "kv_heads", "head_dim", "experts", "experts_per_token")
        return Shape(*(facts[name] for name in names), width, facts["layers"])

    def tiny(self) -> Shape:
        return dataclasses.replace(self, hidden=64, head_dim=16, experts=8, chosen=2, expert_width=32)


class Layer:
    """Weights and KV of one layer, and the step of a batch through it."""

    def __init__(self, shape: Shape, batch: int, pages: int, codec: str, device: torch.device) -> None:
        self.shape, self.codec, like = shape, codec, {"device": device, "dtype": torch.bfloat16}
        heads = shape.query_heads + 2 * shape.kv_heads
        self.qkv = torch.randn(shape.hidden, heads * shape.head_dim, **like) * 0.02
        self.out = torch.randn(shape.query_heads * shape.head_dim, shape.hidden, **like) * 0.02
        self.gate = torch.randn(shape.hidden, shape.experts, **like) * 0.02
        self.up = torch.randn(shape.experts, shape.hidden, 2 * shape.expert_width, **like) * 0.02
        self.down = torch.randn(shape.experts, shape.expert_width, shape.hidden, **like) * 0.02
        self.bias = torch.zeros(shape.experts, device=device)
        sealed = random_payload(codec, batch * pages, shape.kv_heads, shape.head_dim, device)
        payloads = [sealed]
        if codec != "native":  # open pages are native, whatever the sealed ones are
            payloads.insert(0, random_payload("native", batch, shape.kv_heads, shape.head_dim, device))
        self.pool = PagePool.of(payloads)
        self.table, self.valid = tables(batch, pages, device)
        if codec != "native":
            self.table += batch
            self.table[:, -1] = torch.arange(batch, device=device)
        self.valid[:, -1] = 8
        self.open_rows = self.table[:, -1].contiguous()
        self.slots = torch.full((batch,), 7, dtype=torch.int32, device=device)
        self.means = torch.randn(len(self.pool.slot_row), shape.kv_heads, shape.head_dim, **like)
        self.candidate = torch.ones(batch, pages, dtype=torch.bool, device=device)
        self.candidate[:, 0] = self.candidate[:, -8:] = False

    def step(self, x: Tensor, fan_out: float) -> Tensor:
        """Hidden states (batch, hidden) through attention and experts."""
        s, batch = self.shape, len(x)
        qkv = (rms_norm(x, (s.hidden,)) @ self.qkv).view(batch, -1, s.head_dim)
        q, k, v = qkv.split((s.query_heads, s.kv_heads, s.kv_heads), dim=1)
        store_tokens(self.pool.payloads["native"], self.open_rows, self.slots, k, v)
        table, valid = self.table, self.valid
        if fan_out < 1.0:
            scores = centroid_scores(q.contiguous(), self.means, table)
            read = read_set(scores, self.candidate, fan_out) | ~self.candidate
            width = int(fan_out * table.shape[1]) + 10
            table, valid = listed(read, table, valid, min(width, table.shape[1]))
        attended, _ = paged_decode_attention(q.contiguous(), self.pool, table, valid, s.head_dim**-0.5)
        x = x + attended.to(x.dtype).flatten(1) @ self.out
        return x + self._experts(rms_norm(x, (s.hidden,)))

    def _experts(self, x: Tensor) -> Tensor:
        weights, experts = biased_gate(x @ self.gate, self.bias, self.shape.chosen, renormalise=True)
        flat = experts.flatten()
        order = flat.argsort(stable=True)
        ends = (flat.unsqueeze(1) == torch.arange(self.shape.experts, device=x.device)).sum(0).cumsum(0).int()
        inputs = x[order // self.shape.chosen]
        gate, up = torch._grouped_mm(inputs, self.up, offs=ends).chunk(2, dim=1)
        made = torch._grouped_mm((silu(gate) * up).contiguous(), self.down, offs=ends)
        made = made * weights.flatten()[order].unsqueeze(1).to(made.dtype)
        return torch.zeros_like(x).index_add_(0, order // self.shape.chosen, made)


def time_steps(report: Report, context: Context) -> None:
    """Steps at real geometries; the time for all layers is projected and says so."""
    skipped = []
    for name, layers, sizes in CASES:
        shape = Shape.of(name)
        if context.tiny:
            shape, sizes = shape.tiny(), ((2, 0.5),)
        for batch, thousands in sizes:
            pages = int(thousands * 1024) // 16
            for codec, fan_out in (("native", 1.0), ("native", 0.1), ("int8", 1.0)):
                label = f"{name}, batch {batch}, {thousands:g}k tokens, {codec}, fan-out {fan_out:g}"
                kv_bytes = 2.0 * shape.kv_heads * shape.head_dim * 2 * 16 * pages * batch * layers
                if kv_bytes > MOST_KV_BYTES or context.out_of_time(8.0):
                    skipped.append(label)
                    continue
                _time_step(report, context, shape, layers, batch, pages, codec, fan_out, label)
                if context.device.type == "cuda":
                    torch.cuda.empty_cache()
    report.add("decode steps left out, for memory or time", len(skipped), "")
    if context.out_of_time():
        raise OutOfTimeError(f"left out: {'; '.join(skipped)}")


def _time_step(
    report: Report, context: Context, shape: Shape, layers: int, batch: int, pages: int, codec: str, fan_out: float,
    label: str,
) -> None:  # fmt: skip
    stack = [Layer(shape, batch, pages, codec, context.device) for _ in range(layers)]
    x = torch.randn(batch, shape.hidden, device=context.device, dtype=torch.bfloat16)

    def step() -> Tensor:
        state = x
        for layer in stack:
            state = layer.step(state, fan_out)
        return state

    if not bool(torch.isfinite(step()).all()):
        report.add(f"step, {label}: finite", 0.0, "", target="finite", ok=False)
    us = median_us([step], context, 10)
    report.add(f"step of {layers} layers, {label}", us, "us")
    report.add(f"projected to {shape.layers} layers, {label}", us * shape.layers / layers / 1e3, "ms")
