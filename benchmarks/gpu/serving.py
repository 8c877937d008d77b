"""The engine on the device: tokens against the stock cache, virtual ranks, two processes through gloo; policies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu.report import Context, Report, host_us

ROOT = Path(__file__).resolve().parents[2]
PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS = 320, 32, 4
SAME_TOKENS = 0.75
"""Share that must be equal: a flip at a tie of two logits is no fault of the cache, and all after it differs too."""


def prompts() -> np.ndarray:
    text = (ROOT / "LICENSE").read_bytes()[: PROMPT_TOKENS * REQUESTS]
    return np.frombuffer(text, np.uint8).astype(np.int32).reshape(REQUESTS, PROMPT_TOKENS)


def check_engine(report: Report, context: Context) -> None:
    """Tokens of the engine by 1 and 2 virtual ranks, against the stock cache; time per iteration."""
    from pikv_runtime import Engine, RuntimeConfig, load_model

    model = load_model("embedded")[0].to(context.device)
    stock, stock_ms = _stock_tokens(model)
    for ranks in (1, 2):
        engine = Engine(model, RuntimeConfig(slots=REQUESTS, blocks=256), ranks=ranks, clock="wall")
        for _ in range(2):  # the first run warms up
            served = {done.request.request_id: done.output_ids for done in engine.run(_workload())}
        _judge(report, f"engine, {ranks} virtual ranks", np.array([served[q] for q in range(REQUESTS)]), stock)
        step_ms = engine.timers.forward_s / engine.costs().counters["iterations"] * 1e3
        report.add(f"engine forward per iteration, {ranks} ranks", step_ms, "ms", stock_ms)
    context.facts["stock_ms"] = stock_ms


def check_two_processes(report: Report, context: Context) -> None:
    """The same requests by two processes on this device, their messages staged through the host by gloo."""
    from pikv_runtime import load_model
    from pikv_runtime.transport import run_ranks

    stock, _ = _stock_tokens(load_model("embedded")[0].to(context.device))
    left = max(30.0, context.deadline - time.monotonic())
    results = run_ranks(_serve_rank, 2, str(context.device), timeout_s=left, start_method="spawn")
    for rank, result in enumerate(results):
        _judge(report, f"engine, process {rank} of 2 through gloo", result["tokens"], stock)


def time_policies(report: Report, context: Context) -> None:
    """A decision over 32 groups by every runner: on the CPU, where two of them run beside a GPU too, and on the GPU."""
    from pikv_runtime.contract import Control
    from pikv_runtime.policy import NativeRunner, NumpyRunner, PolicyNetwork, random_telemetry
    from pikv_runtime.policy.toolchain import NativeBuildError

    network, told = PolicyNetwork.random((128, 128)), random_telemetry(32, np.random.default_rng(0))
    out, reference = Control.zeros(32), NumpyRunner(network)
    numpy_us = host_us(lambda: reference.decide(told, out))
    report.add("policy decision, numpy", numpy_us, "us")
    try:
        native = NativeRunner(network)
    except NativeBuildError as error:
        print(f"native runner skipped: {error}")
        return
    report.add("policy decision, native", host_us(lambda: native.decide(told, out)), "us", numpy_us)
    runners: dict[str, Any] = {"native": native}
    if context.device.type == "cuda":
        from pikv_runtime.policy.triton_runner import TritonRunner

        runners["triton"] = TritonRunner(network)
        triton_us = host_us(lambda: runners["triton"].decide(told, out))
        report.add("policy decision, triton in a CUDA graph, with copies", triton_us, "us", numpy_us)
    for name, runner in runners.items():
        gap = float(np.abs(runner.decide(told).groups - reference.decide(told).groups).max())
        report.add(f"policy decision, {name} against numpy: largest gap", gap, "", target="<= 1e-5", ok=gap <= 1e-5)


def _serve_rank(rank: int, world: int, device: str) -> dict[str, np.ndarray]:
    """One process of `check_two_processes`: the tokens that it knows at the end, by request."""
    from pikv_runtime import Engine, RuntimeConfig, load_model
    from pikv_runtime.transport import TorchDistTransport

    torch.set_num_threads(1)
    model = load_model("embedded")[0].to(device)
    config = RuntimeConfig(slots=REQUESTS, blocks=256)
    engine = Engine(model, config, transport=TorchDistTransport("cpu"), clock="wall")
    served = {done.request.request_id: done.output_ids for done in engine.run(_workload())}
    return {"tokens": np.array([served[q] for q in range(REQUESTS)], np.int64)}


def _workload() -> Any:
    from pikv_runtime import Request, RequestList

    size, nothing = (PROMPT_TOKENS, OUTPUT_TOKENS), np.zeros((PROMPT_TOKENS + OUTPUT_TOKENS) // 16, np.int64)
    requests = (Request(q, 0.0, *size, nothing, prompt_ids=prompt) for q, prompt in enumerate(prompts()))
    return RequestList("check", 1.0, tuple(requests))


def _stock_tokens(model: Any) -> tuple[np.ndarray, float]:
    """What transformers generates with its own cache (R, T), and milliseconds per step."""
    ids = torch.from_numpy(prompts()).long().to(model.device)
    options = {"max_new_tokens": OUTPUT_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for _ in range(2):  # the first call warms up
        started = time.perf_counter()
        made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, PROMPT_TOKENS:].cpu().numpy()
    return made, (time.perf_counter() - started) / OUTPUT_TOKENS * 1e3


def _judge(report: Report, name: str, tokens: np.ndarray, stock: np.ndarray) -> None:
    equal = float(np.mean(tokens == stock))
    wanted = f">= {SAME_TOKENS}"
    report.add(f"{name}: tokens equal to the stock cache", equal, "share", target=wanted, ok=equal >= SAME_TOKENS)
