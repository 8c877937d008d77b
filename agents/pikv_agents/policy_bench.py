"""The rows of `pikv bench policy`: what a decision costs, by runner, beside what others would take, and in serving."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
from rich.table import Table

from pikv_agents.live import LAMBDAS, live_pool
from pikv_agents.ranking_bench import ranking_us
from pikv_agents.report.tables import plain_table
from pikv_env.live import run_live
from pikv_runtime.contract import Control, GlobalFeature, Telemetry
from pikv_runtime.control_views import observe
from pikv_runtime.policy import NativeRunner, NumpyRunner, PolicyNetwork, load_bundle, load_policy, random_telemetry
from pikv_runtime.policy.decision_log import DecisionLog, Logged, header_of

Row = dict[str, Any]
GROUPS = (32, 512)
CANDIDATES = 256
AIMS = {
    "native, 32 groups": 10.0,
    "native, 512 groups": 100.0,
    f"rank {CANDIDATES} pages": 50.0,
    f"rank {CANDIDATES} blocks": 50.0,
    "decision over a decode step": 0.01,
}
FAMILY, PRESSURE, LOAD, HORIZON_S = "needle-onoff", 2.0, 0.12, 30.0


def rows(bundle: Path, calls: int, repeats: int, *, live: bool) -> Iterator[Row]:
    """Measure one row after the other for the network of `bundle`; `live`: also serve for half a minute."""
    network = load_bundle(bundle).network
    yield _compile_row(network)
    own = {}
    for groups in GROUPS:
        told, out = _credible(groups), Control.zeros(groups)
        for runner in (NativeRunner(network), NumpyRunner(network)):
            spans = _spans(lambda: runner.decide(told, out), calls)  # noqa: B023 - called before the next one
            own[runner.name, groups] = float(np.median(spans))
            yield _row(f"{runner.name}, {groups} groups", spans)
        guard = load_policy(bundle)
        yield _row(f"native behind the guard, {groups} groups", _spans(lambda: guard.decide(told, out), calls))  # noqa: B023
        yield _row(f"logged besides, {groups} groups", _logged_spans(bundle, told, out, min(calls, 200)))
    yield from _rival_rows(network, own["native", GROUPS[0]], calls)
    for what, us in zip(("pages", "blocks"), ranking_us(CANDIDATES, repeats), strict=True):
        yield _row(f"rank {CANDIDATES} {what}", np.array(us), percentile=False)
    if live:
        yield from _live_rows(bundle)


def _credible(groups: int) -> Telemetry:
    """Telemetry from everywhere within its ranges that gives a guard no reason to trip."""
    told = random_telemetry(groups, np.random.default_rng(0))
    told.globals[[GlobalFeature.VETOES, GlobalFeature.LOSS_CLASS0, GlobalFeature.LOSS_CLASS1]] = 0.0
    return told


def _row(name: str, spans: np.ndarray, baseline: float | None = None, percentile: bool = True) -> Row:
    """A row in microseconds; `ratio` says how many times longer it takes than `baseline`."""
    p50 = float(np.median(spans))
    row: Row = {"name": name, "value": p50, "unit": "µs", "baseline": baseline}
    row["ratio"] = None if baseline is None else p50 / baseline
    return row | ({"p99": float(np.percentile(spans, 99))} if percentile else {})


def _spans(call: Callable[[], object], calls: int) -> np.ndarray:
    """Microseconds of each of `calls` calls, warm."""
    for _ in range(20):
        call()
    spans = np.empty(calls)
    for k in range(calls):
        begin = time.perf_counter_ns()
        call()
        spans[k] = time.perf_counter_ns() - begin
    return spans / 1000


def _logged_spans(bundle: Path, told: Telemetry, out: Control, calls: int) -> np.ndarray:
    policy = load_policy(bundle)
    with tempfile.TemporaryDirectory() as folder:
        log = DecisionLog(Path(folder, "log.jsonl"), header_of(policy, str(bundle)))
        logged = Logged(policy, log)
        spans = _spans(lambda: logged.decide(told, out), calls)
        log.close()
    return spans


def _compile_row(network: PolicyNetwork) -> Row:
    """Generating, building and checking the library, with nothing cached."""
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, PIKV_CACHE=empty):
            begin = time.perf_counter()
            NativeRunner(network)
            seconds.append(time.perf_counter() - begin)
    return {"name": "native, built anew", "value": median(seconds), "unit": "s", "baseline": None, "ratio": None}


def _rival_rows(network: PolicyNetwork, native_us: float, calls: int) -> Iterator[Row]:
    """The network alone, on an observation that is made already: less work than a decision, which pools and decodes."""
    told = _credible(GROUPS[0])
    x = ((observe(told.groups[None], told.globals[None]) - network.mean) / network.std).astype(np.float32)
    for name, make in (("SB3 predict", _sb3), ("torch eager", _torch), ("ONNX Runtime", _onnx)):
        call = make(network, x)
        if call is None:
            yield {"name": name, "value": None, "unit": "µs", "baseline": native_us, "ratio": None, "absent": True}
        else:
            yield _row(name, _spans(call, calls), native_us)


def _torch_net(network: PolicyNetwork) -> Any:
    import torch

    torch.set_num_threads(1)
    parts: list[Any] = []
    for weight, bias in network.layers:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        parts += [linear, torch.nn.Tanh() if network.activation == "tanh" else torch.nn.ReLU()]
    return torch.nn.Sequential(*parts[:-1])


def _torch(network: PolicyNetwork, x: np.ndarray) -> Callable[[], object]:
    import torch

    net = _torch_net(network)

    def call() -> object:
        with torch.no_grad():
            return net(torch.from_numpy(x)).numpy()

    return call


def _sb3(network: PolicyNetwork, x: np.ndarray) -> Callable[[], object]:
    import torch
    from gymnasium.spaces import Box
    from stable_baselines3.common.policies import ActorCriticPolicy

    torch.set_num_threads(1)
    space = Box(-np.inf, np.inf, (x.shape[1],), np.float32)
    actions = Box(-1.0, 1.0, (len(network.layers[-1][1]),), np.float32)
    policy = ActorCriticPolicy(space, actions, lambda _: 0.0, net_arch=network.hidden)
    return lambda: policy.predict(x[0], deterministic=True)


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def _onnx(network: PolicyNetwork, x: np.ndarray) -> Callable[[], object] | None:
    """ONNX Runtime on one thread; None where it, or what writes its format, is not installed."""
    if not _installed("onnx", "onnxruntime"):
        return None
    import onnxruntime  # type: ignore[import-not-found]
    from onnx import TensorProto, helper, numpy_helper  # type: ignore[import-not-found]

    nodes, tensors, last = [], [], "x"
    for i, (weight, bias) in enumerate(network.layers):
        tensors += [numpy_helper.from_array(weight, f"w{i}"), numpy_helper.from_array(bias, f"b{i}")]
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"y{i}"], transB=1))
        last = f"y{i}"
        if i < len(network.layers) - 1:
            nodes.append(helper.make_node("Tanh" if network.activation == "tanh" else "Relu", [last], [f"h{i}"]))
            last = f"h{i}"
    shapes = ([1, x.shape[1]], [1, len(network.layers[-1][1])])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(("x", last), shapes, strict=True)]
    graph = helper.make_graph(nodes, "policy", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def _live_rows(bundle: Path) -> Iterator[Row]:
    """Served for real on the wall clock, one rank: decisions behind the guard beside iterations."""
    pool = live_pool(None, FAMILY, 0, 1, LOAD, HORIZON_S)
    found = run_live(pool, str(bundle), pressure=PRESSURE, lambdas=LAMBDAS, clock="wall")
    step_us = 1e6 * found.seconds / found.iterations
    yield {"name": "live: mean decision", "value": found.decision_us, "unit": "µs", "baseline": None, "ratio": None}
    yield {"name": "live: mean decode step", "value": step_us, "unit": "µs", "baseline": None, "ratio": None}
    share = found.decision_us / step_us
    yield {"name": "decision over a decode step", "value": share, "unit": "ratio", "baseline": step_us, "ratio": share}
    share = found.decision_share
    yield {"name": "share of serving time", "value": share, "unit": "ratio", "baseline": None, "ratio": share}


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    out = plain_table("Cost of a decision", ("what",), ("p50", "unit", "p99", "times native"))
    for row in rows:
        digits = 4 if row["unit"] == "ratio" else 2 if row["unit"] == "s" else 1
        value = "absent" if row["value"] is None else f"{row['value']:,.{digits}f}"
        ratio = "" if row["ratio"] is None or row["unit"] == "ratio" else f"{row['ratio']:,.1f}"
        out.add_row(row["name"], value, row["unit"], f"{row['p99']:,.1f}" if "p99" in row else "", ratio)
    return out


def in_words(rows: list[Row]) -> str:
    """What the aims say of it, met or not."""
    named = {row["name"]: row for row in rows}
    lines = []
    for name, aim in AIMS.items():
        if name in named:
            row = named[name]
            unit = "" if row["unit"] == "ratio" else f" {row['unit']}"
            verdict = "reached" if row["value"] <= aim else "not reached"
            lines.append(f"{name}: {row['value']:.3g}{unit}, aim at most {aim:g}{unit}: {verdict}")
    return "\n".join(lines)
