"""Attention kernels against the copy bandwidth of the same card and against SDPA; what the targets judge."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from gpu.cases import random_payload, tables
from gpu.report import Context, OutOfTimeError, Report, median_us
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from pikv_kernels import PagePool, centroid_scores, listed, paged_decode_attention, read_set, recode_pages

KV_HEADS, QUERY_HEADS, DIM = 4, 32, 128  # Qwen3-30B-A3B
WANTED_SHARE = {"bf16": 0.85, "int8": 0.75, "int4": 0.60}
WANTED_SPEEDUP = {"int8": 1.7, "int4": 2.7}
LAYOUTS = ((64, 4, 1, 2), (64, 4, 1, 4), (64, 4, 1, 8), (64, 4, 3, 2), (32, 4, 1, 6), (128, 8, 1, 2))
"""Of the sweep: tokens of a tile, warps, pipeline stages, programs for each multiprocessor."""


def measure_copy(report: Report, context: Context) -> None:
    """Bytes read and written per second by device-to-device copies: the ceiling of the rows below."""
    count = 1 << 16 if context.tiny else 1 << 29
    source = torch.empty(count, dtype=torch.bfloat16, device=context.device).normal_()
    target = torch.empty_like(source)
    us = median_us([lambda: target.copy_(source)], context)
    context.facts["copy_gbs"] = 2 * source.nbytes / us / 1e3
    report.add("copy bandwidth", context.facts["copy_gbs"], "GB/s")


def dense_case(codec: str, rows: int, pages: int, context: Context) -> tuple[Any, ...]:
    payload = random_payload(codec, rows * pages, KV_HEADS, DIM, context.device)
    q = torch.randn(rows, QUERY_HEADS, DIM, device=context.device, dtype=torch.bfloat16)
    return q, PagePool.of([payload]), *tables(rows, pages, context.device), DIM**-0.5


def time_dense(report: Report, context: Context) -> None:
    """Reading everything, at 256 MB and 1 GB of bf16 KV, in every codec; SDPA over the same."""
    copy_gbs = context.facts["copy_gbs"]
    for rows, tokens in ((2, 64),) if context.tiny else ((4, 32768), (16, 32768)):
        label = f"{rows} x {tokens // 1024}k tokens" if tokens >= 1024 else f"{rows} x {tokens} tokens"
        base = None
        for codec in ("bf16", "int8", "fp8", "int4", "int2"):
            if context.out_of_time():
                raise OutOfTimeError(f"at {codec}, {label}")
            case = dense_case(codec, rows, tokens // 16, context)
            us = median_us([lambda case=case: paged_decode_attention(*case)], context)
            share = case[1].payloads[codec].nbytes / us / 1e3 / copy_gbs
            name, wanted = f"decode {codec}, {label}", WANTED_SHARE.get(codec, 0.0)
            report.add(name, us, "us", base)
            over = f"{name}: stored bytes over copy bandwidth"
            if wanted:
                report.aim(over, share, "share", f">= {wanted}", share >= wanted, context)
            else:
                report.add(over, share, "share")
            base = base or us
            if codec in WANTED_SPEEDUP:
                faster = WANTED_SPEEDUP[codec]
                report.aim(f"{name}: times bf16", base / us, "x", f">= {faster}", base / us >= faster, context)
            if codec == "bf16":
                with_mass = median_us([lambda case=case: paged_decode_attention(*case, mass=True)], context)
                extra = with_mass / us - 1
                report.aim(f"attention mass, {label}: extra time", extra, "share", "<= 0.05", extra <= 0.05, context)
            del case
        sdpa = _sdpa_us(rows, tokens, context)
        report.add(f"SDPA over contiguous bf16, {label}", sdpa, "us", base)


def time_small(report: Report, context: Context) -> None:
    """One request of 1k tokens: nothing but latency."""
    cases = [dense_case("bf16", 1, 64, context) for _ in range(1 if context.tiny else 16)]
    us = median_us([partial(paged_decode_attention, *case) for case in cases], context)
    report.aim("decode bf16, batch 1, 1k tokens", us, "us", "<= 10", us <= 10.0, context)


def time_sparse(report: Report, context: Context) -> None:
    """A 10 % read set over 64k tokens: attention alone is judged; with scoring, choosing and listing beside it."""
    rows, pages = (2, 40) if context.tiny else (16, 4096)
    q, pool, table, valid, scale = dense_case("bf16", rows, pages, context)
    means = torch.randn(rows * pages, KV_HEADS, DIM, device=context.device).bfloat16()
    candidate = torch.ones(rows, pages, dtype=torch.bool, device=context.device)
    width = -(-pages // 10)

    def chosen() -> tuple[torch.Tensor, torch.Tensor]:
        return listed(read_set(centroid_scores(q, means, table), candidate, 0.1), table, valid, width)

    def chosen_and_read() -> None:
        paged_decode_attention(q, pool, *chosen(), scale)

    few, few_valid = chosen()
    dense = median_us([lambda: paged_decode_attention(q, pool, table, valid, scale)], context)
    sparse = median_us([lambda: paged_decode_attention(q, pool, few, few_valid, scale)], context)
    whole = median_us([chosen_and_read], context)
    name = f"10 % read set of {pages} pages, {rows} rows"
    report.aim(f"{name}: attention, times dense", dense / sparse, "x", ">= 5", dense / sparse >= 5.0, context)
    report.add(f"{name}: with choosing, times dense", dense / whole, "x")
    report.add(f"choosing 10 % of {pages} pages, {rows} rows", whole - sparse, "us")


def time_writing(report: Report, context: Context) -> None:
    """Sealing pages from bf16: bytes read and written against the copy bandwidth."""
    pages = 64 if context.tiny else 32768
    source = random_payload("native", pages, KV_HEADS, DIM, context.device)
    rows = torch.randperm(pages, device=context.device).int()
    for codec in ("int8", "int4"):
        target = random_payload(codec, pages, KV_HEADS, DIM, context.device)
        us = median_us([lambda target=target: recode_pages(source, rows, target, rows)], context)
        moved = (source.nbytes + target.nbytes) / us / 1e3
        report.add(f"seal {pages} pages to {codec}: over copy bandwidth", moved / context.facts["copy_gbs"], "share")


def sweep(report: Report, context: Context) -> None:
    """Other layouts of the attention kernel, to choose its defaults by."""
    if context.device.type != "cuda":
        return
    from pikv_kernels.triton_attention import Launch, triton_paged_decode

    left_out = 0
    for codec in ("bf16", "int4", "int8"):
        case = dense_case(codec, 8, 2048, context)
        for tile, warps, stages, programs in LAYOUTS:
            if context.out_of_time(4.0):
                left_out += 1
                continue
            launch = Launch(tile, warps, stages, programs)
            us = median_us([partial(triton_paged_decode, *case, page_lse=False, launch=launch)], context, 5)
            share = case[1].payloads[codec].nbytes / us / 1e3 / context.facts["copy_gbs"]
            numbers = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(launch).items())
            report.add(f"sweep {codec}: {numbers}", share, "share")
    report.add("layouts left out of the sweep, for time", left_out, "")


def _sdpa_us(rows: int, tokens: int, context: Context) -> float:
    like = {"device": context.device, "dtype": torch.bfloat16}
    q = torch.randn(rows, QUERY_HEADS, 1, DIM, **like)
    k, v = (torch.randn(rows, KV_HEADS, tokens, DIM, **like) for _ in range(2))
    call = partial(scaled_dot_product_attention, q, k, v, enable_gqa=True)
    if context.device.type != "cuda":
        return median_us([call], context)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        return median_us([call], context)
