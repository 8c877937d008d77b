"""Everything that needs a GPU, in one call: `python benchmarks/gpu_check.py` (or `make gpu-check`).

Checks the attention kernel against its torch reference for every codec, serves with the embedded model on the device,
and times both, and the policy runners. Needs torch, numpy, safetensors and triton; transformers for the engine.
`--device cpu` runs the same code over the torch path, small. Status 0: all right, 1: a check failed, 2: no such device.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "kernels")]  # the project need not be installed there

from pikv_kernels import CODECS, PagePool, encode, paged_decode_attention, torch_paged_decode  # noqa: E402

PACKAGES = ("torch", "triton", "numpy", "safetensors", "transformers", "numba")
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 8e-3}
SHAPES = {"cuda": ((1, 256), (32, 128)), "cpu": ((2, 8),)}  # (rows, pages of each row)
PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS = 320, 32, 4


class Rows:
    """Results so far; a row is kept even where its check fails."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.failures: list[str] = []

    def add(self, name: str, value: float, unit: str, baseline: float | None = None, ok: bool = True) -> None:
        ratio = None if not baseline else value / baseline
        self.rows.append({"name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio})
        if not ok:
            self.failures.append(name)


def median_us(call: Callable[[], Any], device: torch.device, repeats: int = 30) -> float:
    """Median time of `call`: CUDA events on a GPU, wall time elsewhere."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        if device.type != "cuda":
            started = time.perf_counter()
            call()
            times.append((time.perf_counter() - started) * 1e6)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return float(np.median(times))


def attention_case(codecs: tuple[str, ...], dtype: torch.dtype, rows: int, pages: int, device: torch.device) -> tuple:
    """Arguments of `paged_decode_attention` over random pages of 16 tokens, 8 KV heads of 128, 32 query heads."""
    generator = torch.Generator().manual_seed(0)
    each = -(-rows * pages // len(codecs))
    payloads = []
    for codec in codecs:
        k, v = torch.randn(2, each, 8, 16, 128, generator=generator).to(device, dtype).unbind(0)
        payloads.append(encode(codec, k, v))
    table = torch.randperm(each * len(codecs), generator=generator)[: rows * pages].view(rows, pages).int()
    valid = torch.full((rows, pages), 16, dtype=torch.int32)
    table[0, pages // 2], valid[:, -1] = -1, 5  # a page that is not there, a last page partly written
    q = torch.randn(rows, 32, 128, generator=generator).to(device, dtype)
    return q, PagePool.of(payloads), table.to(device), valid.to(device), 128**-0.5


def check_kernels(rows: Rows, device: torch.device) -> None:
    """Largest error of output, log-sum-exp and page mass, for every codec alone and all of them mixed."""
    for dtype, tolerance in TOLERANCE.items():
        for codecs in (*((codec,) for codec in CODECS), tuple(CODECS)):
            case = attention_case(codecs, dtype, 4, 12, device)
            found, wanted = paged_decode_attention(*case, mass=True), torch_paged_decode(*case, page_lse=True)
            error = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
            name = f"kernel error, {'+'.join(codecs)}, {str(dtype).removeprefix('torch.')}"
            rows.add(name, error, "", tolerance, error <= tolerance)


def time_kernels(rows: Rows, device: torch.device) -> None:
    for (count, pages), codec in itertools.product(SHAPES[device.type], CODECS):
        case = attention_case((codec,), torch.bfloat16, count, pages, device)
        reference = median_us(lambda case=case: torch_paged_decode(*case, mass=False), device, 10)
        kernel = median_us(lambda case=case: paged_decode_attention(*case), device)
        rows.add(f"decode attention, {codec}, {count} rows x {pages} pages", kernel, "us", reference)


def stock_tokens(model: Any, prompts: np.ndarray) -> tuple[list[list[int]], float]:
    """What transformers generates from `prompts` (R, T) with its own cache, and milliseconds per step."""
    ids = torch.from_numpy(prompts).long().to(model.device)
    options = {"max_new_tokens": OUTPUT_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for _ in range(2):  # the first call warms up
        started = time.perf_counter()
        made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, prompts.shape[1] :].tolist()
    return made, (time.perf_counter() - started) / OUTPUT_TOKENS * 1e3


def check_engine(rows: Rows, device: torch.device) -> None:
    """Tokens of the engine on the device, by 1 and 2 virtual ranks, against the stock cache; time per iteration."""
    from pikv_runtime import Engine, Request, RequestList, RuntimeConfig, load_model

    model = load_model("embedded")[0].to(device)
    text = (ROOT / "LICENSE").read_bytes()[: PROMPT_TOKENS * REQUESTS]
    prompts = np.frombuffer(text, np.uint8).astype(np.int32).reshape(REQUESTS, PROMPT_TOKENS)
    stock, stock_ms = stock_tokens(model, prompts)
    size, nothing = (PROMPT_TOKENS, OUTPUT_TOKENS), np.zeros((PROMPT_TOKENS + OUTPUT_TOKENS) // 16, np.int64)
    requests = (Request(q, 0.0, *size, nothing, prompt_ids=prompt) for q, prompt in enumerate(prompts))
    workload = RequestList("check", 1.0, tuple(requests))
    for ranks in (1, 2):
        engine = Engine(model, RuntimeConfig(slots=REQUESTS, blocks=256), ranks=ranks, clock="wall")
        for _ in range(2):
            served = {done.request.request_id: done.output_ids for done in engine.run(workload)}
        equal = np.mean([np.mean(served[q] == np.array(stock[q])) for q in range(REQUESTS)])
        # A flip at a tie of two logits is no fault of the cache, and all that follows it differs too.
        rows.add(f"engine tokens equal to the stock cache, {ranks} ranks", float(equal), "share", 1.0, equal >= 0.75)
        step_ms = engine.timers.forward_s / engine.costs().counters["iterations"] * 1e3
        rows.add(f"engine forward per iteration, {ranks} ranks", step_ms, "ms", stock_ms)


def time_policies(rows: Rows, device: torch.device) -> None:
    """A decision over 32 groups by every runner: on the CPU, where two of them run beside a GPU too, and on the GPU."""
    from pikv_runtime.contract import Control
    from pikv_runtime.policy import NativeRunner, NumpyRunner, PolicyNetwork, random_telemetry
    from pikv_runtime.policy.toolchain import NativeBuildError

    network, told = PolicyNetwork.random((128, 128)), random_telemetry(32, np.random.default_rng(0))
    out, cpu, reference = Control.zeros(32), torch.device("cpu"), NumpyRunner(network)
    numpy_us = median_us(lambda: reference.decide(told, out), cpu, 500)
    rows.add("policy decision, numpy", numpy_us, "us")
    try:
        native = NativeRunner(network)
    except NativeBuildError as error:
        print(f"native runner skipped: {error}")
        return
    rows.add("policy decision, native", median_us(lambda: native.decide(told, out), cpu, 500), "us", numpy_us)
    runners: dict[str, Any] = {"native": native}
    if device.type == "cuda":
        from pikv_runtime.policy.triton_runner import TritonRunner

        runners["triton"] = TritonRunner(network)
        triton_us = median_us(lambda: runners["triton"].decide(told, out), cpu, 500)
        rows.add("policy decision, triton in a CUDA graph, with copies", triton_us, "us", numpy_us)
    for name, runner in runners.items():
        gap = float(np.abs(runner.decide(told).groups - reference.decide(told).groups).max())
        rows.add(f"policy decision, {name} against numpy", gap, "", 1e-5, gap <= 1e-5)


def meta(device: torch.device) -> dict[str, Any]:
    """Machine, date, commit and versions that the numbers belong to."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    try:
        git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = git.stdout.strip() or None
    except OSError:  # a copy of the tree, on a machine without git
        commit = None
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    date = datetime.date.today().isoformat()
    return {"machine": f"{gpu}, {platform.node()}", "date": date, "commit": commit, "versions": versions}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ["OUT"]) / "gpu_check.json" if "OUT" in os.environ else None
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, default=default, help="write the rows here ($OUT/gpu_check.json)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was checked (--device cpu runs the same code over torch)", file=sys.stderr)
        return 2
    device, rows = torch.device(arguments.device), Rows()
    check_kernels(rows, device)
    time_kernels(rows, device)
    if importlib.util.find_spec("transformers") is not None:
        check_engine(rows, device)
    else:
        print("engine skipped: transformers is not installed")
    time_policies(rows, device)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"rows": rows.rows, "meta": meta(device)}, indent=1))
    for name, value, unit, baseline, _ in (row.values() for row in rows.rows):
        print(f"{name:62} {value:12.5g} {unit:6} " + ("" if baseline is None else f"{baseline:12.5g}"))
    print("failed: " + "; ".join(rows.failures) if rows.failures else "all checks passed")
    return 1 if rows.failures else 0


if __name__ == "__main__":
    sys.exit(main())
