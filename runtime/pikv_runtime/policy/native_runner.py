"""The native runner: the network as compiled C, called through ctypes with buffers allocated once."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from pikv_runtime.contract import GLOBAL_FEATURES, GROUP_FEATURES, Control, Telemetry
from pikv_runtime.policy.codegen import source
from pikv_runtime.policy.golden import TOLERANCE
from pikv_runtime.policy.network import PolicyNetwork
from pikv_runtime.policy.numpy_runner import NumpyRunner, check_groups
from pikv_runtime.policy.toolchain import NativeBuildError, load_library

MOST_WEIGHTS = 2**20
"""Larger networks would take the compiler minutes and gigabytes; numpy is as fast there."""


class NativeRunner:
    """Evaluates a network in compiled C; raises NativeBuildError if it cannot be built or does not agree."""

    name = "native"

    def __init__(self, network: PolicyNetwork) -> None:
        weights = sum(weight.size for weight, _ in network.layers)
        if weights > MOST_WEIGHTS:
            raise NativeBuildError(f"the network has {weights} weights: at most {MOST_WEIGHTS} are compiled")
        self.network = network
        self.view = network.control_view
        self._library = load_library(source(network))
        self._calls: dict[int, _Call] = {}
        self._check()

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        groups = telemetry.groups
        call = self._calls.get(len(groups))
        if call is None or groups.shape != call.shape:
            check_groups(self.network, telemetry)
            call = self._calls[len(groups)] = _Call(self, len(groups))
        if out is None:
            out = Control.zeros(len(groups))
        call(telemetry, out)
        return out

    def _check(self) -> None:
        """Compare with the reference once: a miscompiled policy must not decide."""
        telemetry = Telemetry.zeros(self.network.num_groups or 3)
        mine, reference = self.decide(telemetry), NumpyRunner(self.network).decide(telemetry)
        for name in ("groups", "globals"):
            if not np.allclose(getattr(mine, name), getattr(reference, name), TOLERANCE, TOLERANCE, equal_nan=True):
                raise NativeBuildError(f"the compiled policy disagrees with numpy in control.{name}")


class _Call:
    """Buffers and a bound function for one number of groups."""

    def __init__(self, runner: NativeRunner, num_groups: int) -> None:
        self.view = runner.view
        self.shape = (num_groups, len(GROUP_FEATURES))
        padded = np.zeros(num_groups * len(GROUP_FEATURES) + 1, np.float32)  # see `observe` in decide.c
        self.telemetry = Telemetry(padded[:-1].reshape(self.shape), np.zeros(len(GLOBAL_FEATURES), np.float32))
        self.control = Control.zeros(num_groups)
        self.outputs = np.zeros((1, self.view.num_outputs))
        self.coef = self.view.name == "coef"
        arrays: list[np.ndarray[Any, Any]] = [self.telemetry.groups, self.telemetry.globals]
        arrays += [self.control.groups, self.control.globals] if self.coef else [self.outputs]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
        self.arguments = (*pointers[:2], ctypes.c_long(num_groups), *pointers[2:])
        self.function = runner._library.pikv_decide if self.coef else runner._library.pikv_outputs
        self.function.restype = None

    def __call__(self, telemetry: Telemetry, out: Control) -> None:
        # Copying into fixed buffers costs less than asking numpy for addresses; C sanitises them in place.
        np.copyto(self.telemetry.groups, telemetry.groups)
        np.copyto(self.telemetry.globals, telemetry.globals)
        self.function(*self.arguments)
        if self.coef:
            np.copyto(out.groups, self.control.groups)
            np.copyto(out.globals, self.control.globals)
            return
        groups, globals_ = self.telemetry.groups[None], self.telemetry.globals[None]
        self.view.decode(self.view.act(self.outputs), groups, globals_, out.groups[None], out.globals[None])
