"""The Triton kernel, interpreted here and compiled ahead of time in a second process (one cannot do both)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_reference import make_case, poisoned, reference_decode

from pikv_kernels import CODECS, PagePool, encode, page_mass, paged_decode_attention

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
RECORDED = Path(__file__).with_name("resources.json")


FP16_STEP = 2e-3
"""Four halves of fp16's last place (2**-11): code times scale, plus zero, probability, and their products' sum."""


def assert_kernel_matches(case, expected, monkeypatch, rtol=1e-4, atol=2e-5, **options):
    monkeypatch.setenv("PIKV_TRITON", "interpret")
    results = paged_decode_attention(*case.args, mass=True, **options)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=rtol, atol=atol)


@interpreted
@pytest.mark.parametrize("codecs", [(codec,) for codec in CODECS] + [CODECS], ids="+".join)
def test_kernel_matches_the_reference_and_never_reads_padding(codecs, monkeypatch):
    case = make_case(codecs, rows=2, max_pages=4)
    case.page_table[-1] = case.page_table[0].roll(1)
    assert_kernel_matches(poisoned(case), reference_decode(case), monkeypatch)


@interpreted
@pytest.mark.parametrize("codecs", [(codec,) for codec in CODECS[2:]] + [("native", "int8"), CODECS], ids="+".join)
def test_kernel_multiplies_codes_in_fp16(codecs, monkeypatch):
    case = poisoned(make_case(codecs, torch.bfloat16 if len(codecs) == 2 else torch.float16, rows=2))
    assert_kernel_matches(case, reference_decode(case), monkeypatch, FP16_STEP, FP16_STEP)


@interpreted
def test_bf16_pages_alone_are_multiplied_without_rounding(monkeypatch):
    case = make_case(("native", "bf16"), torch.bfloat16, rows=2)
    assert_kernel_matches(case, reference_decode(case), monkeypatch)


@interpreted
@pytest.mark.parametrize("dims", [(16, 48), (48, 16)], ids=str)
def test_kernel_takes_two_widths_and_windows(dims, monkeypatch):
    gen = torch.Generator().manual_seed(1)
    k, v = (torch.randn(6, 2, 8, dim, generator=gen) for dim in dims)
    pool = PagePool.of([encode("native", k[:3], v[:3]), encode("int4", k[3:], v[3:])])
    table = torch.tensor([[5, 0, -1, 3], [1, 4, 2, 0]], dtype=torch.int32)
    valid = torch.tensor([[8, 8, 8, 3], [8, 8, 8, 1]], dtype=torch.int32)
    first = torch.tensor([[5, 0, 0, 0], [0, 0, 7, 1]], dtype=torch.int32)
    args = (torch.randn(2, 4, dims[0], generator=gen), pool, table, valid, 0.2)
    monkeypatch.setenv("PIKV_TRITON", "off")
    expected = paged_decode_attention(*args, mass=True, first_token=first)  # torch, tested against dense attention
    monkeypatch.setenv("PIKV_TRITON", "interpret")
    for result, reference in zip(paged_decode_attention(*args, mass=True, first_token=first), expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("group", [1, 4, 9], ids=lambda group: f"{group} queries a head")
@pytest.mark.parametrize("page_tokens", [1, 8, 48, 128], ids=lambda tokens: f"{tokens} tokens")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("codecs", [(codec,) for codec in CODECS] + [CODECS], ids="+".join)
def test_kernel_over_the_grid(codecs, dtype, page_tokens, group, monkeypatch):
    pages = max(2, 160 // page_tokens // 4 * 2)
    case = make_case(codecs, dtype, 3, pages, 2 * group, 2, page_tokens, 64, seed=group)
    limit = 1e-4 if dtype == torch.float32 else FP16_STEP
    assert_kernel_matches(poisoned(case), reference_decode(case), monkeypatch, limit, limit)


@interpreted
@pytest.mark.parametrize(
    "shape",
    [
        {"query_heads": 3, "heads": 1, "page_tokens": 5, "head_dim": 48},
        {"query_heads": 2, "heads": 2, "page_tokens": 16, "head_dim": 64, "rows": 1, "max_pages": 1},
    ],
    ids=str,
)
def test_kernel_pads_shapes_that_are_no_powers_of_two(shape, monkeypatch):
    case = make_case(("native", "int4"), **{"rows": 2, **shape})
    assert_kernel_matches(case, reference_decode(case), monkeypatch)


@interpreted
@pytest.mark.parametrize("splits", [2, 4, 7])
def test_kernel_splits_merge_to_the_whole(splits):
    from pikv_kernels.triton_attention import triton_paged_decode

    case = make_case(("native", "int8"), rows=2, query_heads=2, heads=1, max_pages=5)
    out, lse, page_lse = triton_paged_decode(*case.args, page_lse=True, splits=splits)
    for result, reference in zip((out, lse, page_mass(page_lse, lse)), reference_decode(case), strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=1e-4, atol=2e-5)


@interpreted
def test_kernel_with_nothing_to_read(monkeypatch):
    case = make_case(rows=2)
    case.page_table.fill_(-1)
    assert_kernel_matches(case, reference_decode(case), monkeypatch)
    none = case.page_table[:, :0]
    out, lse = paged_decode_attention(case.q, case.pool, none, none, case.scale)
    assert not out.any()
    assert (lse == -torch.inf).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kernel_on_a_gpu_matches_the_reference(dtype):
    case = make_case(CODECS, dtype, rows=4, max_pages=64, query_heads=8, head_dim=128)
    pool = PagePool(
        {name: payload.to("cuda") for name, payload in case.pool.payloads.items()},
        case.pool.slot_codec.cuda(),
        case.pool.slot_row.cuda(),
    )
    args = (case.q.cuda(), pool, case.page_table.cuda(), case.tokens_in_page.cuda(), case.scale)
    tolerance = 1e-4 if dtype == torch.float32 else 4e-3
    for result, reference in zip(paged_decode_attention(*args, mass=True), reference_decode(case), strict=True):
        torch.testing.assert_close(result.cpu().double(), reference, rtol=tolerance, atol=tolerance)


def compiled(*arguments: str) -> list[dict]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("aot_gate.py")
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_as_recorded(builds: list[dict]) -> None:
    """No spills; registers and shared memory as in the committed table (of one version of Triton), within a tenth."""
    table = json.loads(RECORDED.read_text())
    recorded = {(row["build"], row["kernel"], row["arch"]): row for row in table["builds"]}
    for build in builds:
        assert build["stack"] == 0 and build["local"] == 0, build
        before = recorded[build["build"], build["kernel"], build["arch"]]
        assert (build["tensor_core"] > 0) == (before["tensor_core"] > 0), (build, before)
        if table["triton"] == triton_version():
            assert build["shared"] == before["shared"], (build, before)
            assert abs(build["reg"] - before["reg"]) <= before["reg"] // 10, (build, before)


def triton_version() -> str:
    return importlib.metadata.version("triton")


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_kernels_compile_without_spills_and_as_recorded(arch):
    builds = compiled("--arch", str(arch), "--everywhere")
    assert len({build["kernel"] for build in builds}) == 11
    assert_as_recorded(builds)


@pytest.mark.slow
def test_every_build_compiles_without_spills_and_as_recorded():
    builds = compiled()
    table = json.loads(RECORDED.read_text())["builds"]
    assert len(builds) == len(table)
    assert_as_recorded(builds)
