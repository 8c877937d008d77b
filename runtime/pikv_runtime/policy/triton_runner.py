"""The Triton runner: a decision in one launch on the GPU, where the engine's tensors are.

Serves the `coef` view. On a CUDA device the launch and both copies are one CUDA graph per number of groups; under
`TRITON_INTERPRET=1` it runs on the CPU, slowly, for tests.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pikv_runtime.contract import (
    EVICT_MAX,
    GLOBAL_CONTROLS,
    GLOBAL_FEATURES,
    GROUP_CONTROLS,
    GROUP_FEATURES,
    RATIO_MAX,
    Control,
    GlobalControl,
    GroupControl,
    Telemetry,
)
from pikv_runtime.policy.network import OBSERVATION_CLIP, PolicyNetwork
from pikv_runtime.policy.numpy_runner import check_groups
from pikv_runtime.views.base import CONTROL_GLOBAL_BOUNDS, GLOBAL_BOUNDS, GROUP_BOUNDS
from pikv_runtime.views.coef import COEF_BASIS, COEF_GAIN, COEF_SATURATION, COEF_TERM_COUNT, TERM_COLUMNS, TERM_ROWS


class TritonRunner:
    """Evaluates a network in one launch.

    Raises:
        ValueError: another view than `coef`; no CUDA device, and not interpreting.
    """

    name = "triton"

    def __init__(self, network: PolicyNetwork, device: str = "") -> None:
        if network.view != "coef":
            raise ValueError(f"runner 'triton' serves the view 'coef', not {network.view!r}: use 'native'")
        interpreting = os.environ.get("TRITON_INTERPRET") == "1"
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cpu" and not interpreting:
            raise ValueError("runner 'triton' needs a CUDA device (or TRITON_INTERPRET=1): use 'native'")
        from pikv_kernels.triton_policy import launch_constants

        self.network = network
        self.tensors = policy_tensors(network).to(self.device)
        self.constants = launch_constants(self.tensors, policy_constants(network))
        self._calls: dict[int, _Call] = {}

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`. Waits for the device."""
        check_groups(self.network, telemetry)
        count = len(telemetry.groups)
        call = self._calls.get(count)
        if call is None:
            call = self._calls[count] = _Call.of(self, count)
        out = out if out is not None else Control.zeros(count)
        call(telemetry, out)
        return out

    def launch(
        self, groups: torch.Tensor, globals_: torch.Tensor, out_groups: torch.Tensor, out_globals: torch.Tensor
    ) -> None:
        """Decide on the device: telemetry (n, F), (G,) to control (n, 3), (K,), all float32; safe in a CUDA graph."""
        from pikv_kernels.triton_policy import triton_policy

        triton_policy(groups, globals_, self.tensors, self.constants, out_groups, out_globals)


@dataclass
class _Call:
    """Staging memory and device tensors for one number of groups, and the graph that joins them."""

    told: torch.Tensor
    asked: torch.Tensor
    replay: Any
    split: int
    control_split: int

    @classmethod
    def of(cls, runner: TritonRunner, count: int) -> _Call:
        split, control_split = count * len(GROUP_FEATURES), count * len(GROUP_CONTROLS)
        cuda = runner.device.startswith("cuda")
        told = torch.zeros(split + len(GLOBAL_FEATURES), pin_memory=cuda)
        asked = torch.zeros(control_split + len(GLOBAL_CONTROLS), pin_memory=cuda)
        told_there, asked_there = (told.to(runner.device), asked.to(runner.device)) if cuda else (told, asked)

        def once() -> None:
            if cuda:
                told_there.copy_(told, non_blocking=True)
            runner.launch(
                told_there[:split].view(count, -1),
                told_there[split:],
                asked_there[:control_split].view(count, -1),
                asked_there[control_split:],
            )
            if cuda:
                asked.copy_(asked_there, non_blocking=True)

        return cls(told, asked, _graph(once) if cuda else once, split, control_split)

    def __call__(self, telemetry: Telemetry, out: Control) -> None:
        told, asked = self.told.numpy(), self.asked.numpy()
        np.copyto(told[: self.split].reshape(telemetry.groups.shape), telemetry.groups)
        np.copyto(told[self.split :], telemetry.globals)
        self.replay()
        np.copyto(out.groups, asked[: self.control_split].reshape(out.groups.shape))
        np.copyto(out.globals, asked[self.control_split :])


def _graph(once: Any) -> Any:
    """`once` as a CUDA graph whose replay waits for the answer."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        once()  # compile before capturing
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        once()

    def replay() -> None:
        with torch.cuda.stream(stream):
            graph.replay()
        stream.synchronize()

    return replay


def policy_tensors(network: PolicyNetwork) -> Any:
    """`PolicyTensors` of a network, on the CPU."""
    from pikv_kernels.triton_policy import PolicyTensors

    layout, parts, at = [], [], 0
    for weight, bias in network.layers:
        layout.append((weight.shape[1], weight.shape[0], at, at + weight.size))
        parts += [weight.ravel(), bias]
        at += weight.size + bias.size
    table = np.full((len(COEF_BASIS), len(GROUP_CONTROLS)), -1, np.int32)
    table[TERM_ROWS, TERM_COLUMNS] = np.arange(COEF_TERM_COUNT)
    basis = [(-1 if column is None else int(column), scale, shift) for _, column, scale, shift in COEF_BASIS]
    widest = max(max(row[:2]) for row in layout)
    return PolicyTensors(
        group_range=torch.from_numpy(np.stack(GROUP_BOUNDS)),
        global_range=torch.from_numpy(np.stack(GLOBAL_BOUNDS)),
        mean=torch.from_numpy(network.mean.astype(np.float64)),
        inverse_std=torch.from_numpy(1.0 / network.std.astype(np.float64)),
        weights=torch.from_numpy(np.concatenate(parts)),
        layout=torch.tensor(layout, dtype=torch.int32),
        table=torch.from_numpy(table),
        basis=torch.tensor(basis, dtype=torch.float64),
        control_range=torch.from_numpy(np.stack(CONTROL_GLOBAL_BOUNDS)),
        scratch=torch.zeros(2, widest, dtype=torch.float64),
    )


def policy_constants(network: PolicyNetwork) -> dict[str, float | int | bool]:
    """What the kernel must know of contract and view besides shapes."""
    return {
        "RELU": network.activation == "relu",
        "CLIP": OBSERVATION_CLIP,
        "TERMS": COEF_TERM_COUNT,
        "GAIN": COEF_GAIN,
        "SATURATION": COEF_SATURATION,
        "BIAS_AT": int(GroupControl.ROUTING_BIAS),
        "RATIO_AT": int(GroupControl.COMPRESSION_RATIO),
        "EVICT_AT": int(GroupControl.EVICT_FRACTION),
        "RATIO_MAX": RATIO_MAX,
        "EVICT_MAX": EVICT_MAX,
        "WINDOW_AT": int(GlobalControl.WINDOW),
    }
