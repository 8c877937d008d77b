"""The Triton kernel, interpreted here and compiled ahead of time in a second process (one cannot do both)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_reference import make_case, poisoned, reference_decode

from pikv_kernels import CODECS, PagePool, page_mass, paged_decode_attention

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
MOST_REGISTERS = 240


def assert_kernel_matches(case, expected, monkeypatch):
    monkeypatch.setenv("PIKV_TRITON", "interpret")
    for result, reference in zip(paged_decode_attention(*case.args, mass=True), expected, strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=1e-4, atol=2e-5)


@interpreted
@pytest.mark.parametrize("codecs", [(codec,) for codec in CODECS] + [CODECS], ids="+".join)
def test_kernel_matches_the_reference_and_never_reads_padding(codecs, monkeypatch):
    case = make_case(codecs, rows=2, max_pages=4)
    case.page_table[-1] = case.page_table[0].roll(1)
    assert_kernel_matches(poisoned(case), reference_decode(case), monkeypatch)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_kernel_upcasts_16_bit_pages(dtype, monkeypatch):
    case = make_case(("native", "int8"), dtype, rows=2)
    assert_kernel_matches(case, reference_decode(case), monkeypatch)


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


def test_kernel_compiles_for_gpus_without_spills():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("aot_gate.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    builds = [json.loads(line) for line in done.stdout.splitlines()]
    assert {build["arch"] for build in builds} == {80, 90}
    for build in builds:
        assert build["stack"] == 0, build
        assert build["local"] == 0, build
        assert build["reg"] <= MOST_REGISTERS, build
        assert build["tensor_core"] > 0, build
