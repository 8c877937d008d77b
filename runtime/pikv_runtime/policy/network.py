"""The network of a learned policy: normaliser, MLP, control view. Weights only; runners evaluate it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pikv_runtime.contract import Array
from pikv_runtime.control_views import ControlView, make_view, observation_names
from pikv_runtime.registry import UnknownNameError

ACTIVATIONS = ("tanh", "relu")
OBSERVATION_CLIP = 10.0
"""Normalised observations are clipped to ± this."""
MAX_LAYERS, MAX_WIDTH = 8, 4096


@dataclass(frozen=True)
class PolicyNetwork:
    """observation (D,) → (x - mean) / std, clipped → MLP → outputs, read by `view`."""

    view: str
    """Name of the control view."""
    activation: Literal["tanh", "relu"]
    """Between layers; the last layer is linear."""
    mean: Array
    """(D,)"""
    std: Array
    """(D,), positive."""
    layers: tuple[tuple[Array, Array], ...] = field(repr=False)
    """Per layer its weight (out, in) and bias (out,)."""
    num_groups: int | None = None
    """Groups it serves; None: any."""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise UnknownNameError("activation", self.activation, list(ACTIVATIONS))
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise ValueError(f"network has {len(self.layers)} layers: allowed 1..{MAX_LAYERS}")
        tensors, shapes = self.tensors(), expected_shapes(self.view, self.hidden, self.num_groups)
        for name, shape in shapes.items():
            check_tensor(name, tensors[name], shape)
        if np.any(self.std <= 0):
            raise ValueError(f"tensor 'obs_std' has a smallest entry of {self.std.min()}: must be positive")

    @property
    def control_view(self) -> ControlView:
        """The view that turns outputs into a control."""
        return make_view(self.view, self.num_groups)

    @property
    def hidden(self) -> list[int]:
        """Widths of the hidden layers."""
        return [len(bias) for _, bias in self.layers[:-1]]

    def tensors(self) -> dict[str, Array]:
        """All weights under the names of a bundle."""
        tensors = {"obs_mean": self.mean, "obs_std": self.std}
        for i, (weight, bias) in enumerate(self.layers):
            tensors |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        return tensors

    @classmethod
    def from_tensors(
        cls, view: str, activation: Literal["tanh", "relu"], tensors: dict[str, Array], num_groups: int | None
    ) -> PolicyNetwork:
        """Inverse of `tensors`."""
        count = sum(name.endswith(".weight") for name in tensors)
        layers = tuple((tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(count))
        return cls(view, activation, tensors["obs_mean"], tensors["obs_std"], layers, num_groups)

    @classmethod
    def random(
        cls,
        hidden: tuple[int, ...] = (64, 64),
        view: str = "coef",
        activation: Literal["tanh", "relu"] = "tanh",
        num_groups: int | None = None,
        seed: int = 0,
    ) -> PolicyNetwork:
        """Untrained weights: for tests and benches."""
        rng = np.random.default_rng(seed)
        tensors = {}
        for name, shape in expected_shapes(view, list(hidden), num_groups).items():
            scale = 1.5 / np.sqrt(shape[1]) if len(shape) == 2 else 0.1
            tensors[name] = rng.normal(0, scale, shape).astype(np.float32)
        tensors["obs_std"] = 1 + np.abs(tensors["obs_std"])
        return cls.from_tensors(view, activation, tensors, num_groups)


def expected_shapes(view: str, hidden: list[int], num_groups: int | None) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a network, in order."""
    observation = len(observation_names(num_groups or 0, view))
    widths = [observation, *hidden, make_view(view, num_groups).num_outputs]
    if any(not 1 <= width <= MAX_WIDTH for width in hidden):
        raise ValueError(f"hidden layers {hidden}: each must be 1..{MAX_WIDTH} wide")
    shapes: dict[str, tuple[int, ...]] = {"obs_mean": (observation,), "obs_std": (observation,)}
    for i in range(len(widths) - 1):
        shapes |= {f"layers.{i}.weight": (widths[i + 1], widths[i]), f"layers.{i}.bias": (widths[i + 1],)}
    return shapes


def check_tensor(name: str, tensor: Array, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `tensor` is finite float32 of `shape`."""
    if tensor.dtype != np.float32:
        raise ValueError(f"tensor {name!r} is {tensor.dtype}: must be float32")
    if tensor.shape != shape:
        raise ValueError(f"tensor {name!r} has shape {tensor.shape}: must be {shape}")
    if not np.isfinite(tensor).all():
        raise ValueError(f"tensor {name!r} holds NaN or infinity")
