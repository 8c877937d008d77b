"""Kernels against torch: attention to a tolerance, what writes codes bit for bit, what chooses exactly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gpu.cases import encoded_case, random_payload
from gpu.report import Context, Report

from pikv_kernels import (
    CODECS,
    PagePayload,
    biased_gate,
    bound_scores,
    centroid_scores,
    encode,
    key_summaries,
    listed,
    merge_partials,
    page_utility,
    paged_decode_attention,
    read_set,
    recode_pages,
    store_tokens,
    victims,
)

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 8e-3, torch.float16: 4e-3}
BUILDS = {
    torch.bfloat16: (*((codec,) for codec in CODECS), CODECS),
    torch.float32: (("native",), ("int4",), CODECS),
    torch.float16: (("int8",), CODECS),
}
"""What attention is compiled and checked for; a build takes a GPU machine seconds."""


@contextmanager
def torch_path() -> Iterator[None]:
    before = os.environ.get("PIKV_TRITON")
    os.environ["PIKV_TRITON"] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PIKV_TRITON"]
        else:
            os.environ["PIKV_TRITON"] = before


def check_attention(report: Report, context: Context) -> None:
    """Largest error of output, log-sum-exp and page mass, for every codec alone and all of them mixed."""
    for dtype, tolerance in TOLERANCE.items():
        for codecs in BUILDS[dtype]:
            q, pool, table, valid, scale = encoded_case(
                codecs, dtype, 4, 60 if not context.tiny else 12, context.device
            )
            found = paged_decode_attention(q, pool, table, valid, scale, mass=True)
            with torch_path():
                wanted = paged_decode_attention(q, pool, table, valid, scale, mass=True)
            _judge(report, f"attention, {'+'.join(codecs)}, {str(dtype)[6:]}", found, wanted, tolerance)


def check_other_kernels(report: Report, context: Context) -> None:
    """Everything but attention, each against its torch path."""
    device, generator = context.device, torch.Generator().manual_seed(1)
    pages = 64 if context.tiny else 512

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    k, v = random(pages, 4, 16, 128).bfloat16(), random(pages, 4, 16, 128).bfloat16()
    rows = torch.randperm(pages, generator=generator).to(device)
    for before, after in (*(("native", codec) for codec in CODECS[1:]), ("int8", "int4"), ("int4", "int2")):
        found, wanted = (_recoded(encode(before, k.cpu(), v.cpu()).to(where), after, rows) for where in (device, "cpu"))
        # torch on a CPU is the reference: on a GPU it divides by constants through their reciprocals
        _differences(report, f"recode {before} to {after}", found, wanted, 0)
    _same(report, "store tokens", lambda: _stored(k, v, rows))
    payload = random_payload("native", pages, 4, 128, device)
    _close(report, "key summaries", lambda: key_summaries(payload, rows), 1e-4)
    q, low = random(8, 32, 128), random(8, pages, 4, 128)
    _close(report, "centroid scores", lambda: (centroid_scores(q, low),), 1e-4)
    _close(report, "bound scores", lambda: (bound_scores(q, low, low + 1.0),), 1e-3)
    _close(report, "page utility", lambda: (page_utility(low[..., 0, :6], q[0, 0, :6]),), 1e-5)
    score, bias = random(8, 4096), random(8, 4096)
    candidate = torch.rand(8, 4096, generator=generator).to(device) < 0.7
    table = torch.arange(8 * 4096, dtype=torch.int32, device=device).view(8, 4096)
    count = torch.arange(8, dtype=torch.int32, device=device) * 300
    _same(report, "read set", lambda: (read_set(score.round(decimals=1), candidate, 0.1),))
    _same(report, "victims", lambda: (victims(score, candidate, count),))
    _same(report, "list", lambda: listed(read_set(score, candidate, 0.1), table, table % 16, 512))
    _differing(report, "read set with bias", lambda: read_set(score, candidate, 0.1, bias), 4)
    logits, gate_bias = random(256, 128), random(128)
    _same(report, "gate, experts", lambda: biased_gate(logits, gate_bias, 8, renormalise=True)[1:])
    _close(report, "gate, weights", lambda: biased_gate(logits, gate_bias, 8, renormalise=True)[:1], 1e-5)
    lses = random(37, 64)
    lses[3], lses[:, 5] = -torch.inf, -torch.inf
    outs = random(37, 64, 128)
    outs[3] = torch.nan
    _close(report, "merge", lambda: merge_partials(outs, lses), 1e-4)


def _recoded(source: PagePayload, codec: str, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    shape = (source.heads, source.page_tokens, source.head_dim)
    target = PagePayload.zeros(codec, source.pages, *shape, torch.bfloat16, source.k.device)
    rows = rows.to(source.k.device)
    recode_pages(source, rows, target, torch.arange(source.pages, device=rows.device))
    return tuple(tensor.cpu() for tensor in target.tensors().values())


def _stored(k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    pages = PagePayload.zeros("native", len(k), 4, 16, 128, torch.bfloat16, k.device)
    store_tokens(pages, rows, rows % 16, k[:, :, 3], v[:, :, 5])
    return pages.k, pages.v


def _both(call: Callable[[], Any]) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    found = call()
    with torch_path():
        return found, call()


def _same(report: Report, name: str, call: Callable[[], tuple[torch.Tensor, ...]]) -> None:
    found, wanted = _both(call)
    _differences(report, name, found, wanted, 0)


def _differing(report: Report, name: str, call: Callable[[], torch.Tensor], most: int) -> None:
    found, wanted = _both(lambda: (call(),))
    _differences(report, name, found, wanted, most)


def _differences(report: Report, name: str, found: tuple, wanted: tuple, most: int) -> None:
    differing = sum(int((a != b).sum()) for a, b in zip(found, wanted, strict=True))
    report.add(f"{name}: entries that differ", differing, "", target=f"<= {most}", ok=differing <= most)


def _close(report: Report, name: str, call: Callable[[], tuple[torch.Tensor, ...]], tolerance: float) -> None:
    _judge(report, name, *_both(call), tolerance)


def _judge(report: Report, name: str, found: tuple, wanted: tuple, tolerance: float) -> None:
    error = 0.0
    for a, b in zip(found, wanted, strict=True):
        same_infinities = bool((torch.isneginf(a) == torch.isneginf(b)).all())
        gap = (a - b).masked_fill(torch.isneginf(a) & torch.isneginf(b), 0.0).abs()
        worst = float(gap.max()) if same_infinities else float("inf")
        error = max(error, worst if worst == worst else float("inf"))  # NaN never passes
    report.add(f"{name}: largest error", error, "", target=f"<= {tolerance:g}", ok=error <= tolerance)
