"""The reference runner: numpy, in float64, step by step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.contract import GROUP_FEATURES, Control, Telemetry
from pikv_runtime.control_views import observe
from pikv_runtime.policy.network import OBSERVATION_CLIP, PolicyNetwork


class NumpyRunner:
    """Evaluates a network with preallocated buffers. In float64: runners then agree but for the last bit."""

    name = "numpy"

    def __init__(self, network: PolicyNetwork) -> None:
        self.network = network
        self.view = network.control_view
        self._mean = network.mean.astype(np.float64)
        self._inverse_std = 1.0 / network.std.astype(np.float64)
        self._layers = [(w.T.astype(np.float64, order="C"), b.astype(np.float64)) for w, b in network.layers]
        self._observation = np.empty((1, len(network.mean)), np.float32)
        self._normalised = np.empty((1, len(network.mean)))
        self._activations = [np.empty((1, len(b))) for _, b in network.layers]

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        groups, globals_ = telemetry.groups[None], telemetry.globals[None]
        check_groups(self.network, telemetry)
        out = out if out is not None else Control.zeros(len(telemetry.groups))
        observe(groups, globals_, self._observation, self.network.view)
        actions = self.view.act(self._forward())
        self.view.decode(actions, groups, globals_, out.groups[None], out.globals[None])
        return out

    def _forward(self) -> NDArray[np.float64]:
        x = self._normalised
        np.subtract(self._observation, self._mean, out=x)
        np.multiply(x, self._inverse_std, out=x)
        np.clip(x, -OBSERVATION_CLIP, OBSERVATION_CLIP, out=x)
        last = len(self._layers) - 1
        for i, ((weight, bias), y) in enumerate(zip(self._layers, self._activations, strict=True)):
            np.matmul(x, weight, out=y)
            y += bias
            if i < last and self.network.activation == "tanh":
                np.tanh(y, out=y)
            elif i < last:
                np.maximum(y, 0.0, out=y)
            x = y
        return x


def check_groups(network: PolicyNetwork, telemetry: Telemetry) -> None:
    """Raise ValueError unless `network` serves telemetry of this shape."""
    shape = telemetry.groups.shape
    if len(shape) != 2 or shape[0] < 1 or shape[1] != len(GROUP_FEATURES):
        raise ValueError(f"telemetry.groups has shape {shape}: must be (1 or more, {len(GROUP_FEATURES)})")
    if network.num_groups not in (None, shape[0]):
        raise ValueError(f"policy {network.view!r} serves {network.num_groups} groups, the telemetry has {shape[0]}")
