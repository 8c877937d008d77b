"""Triton kernel of a small policy: pooled telemetry, a multilayer perceptron, a control per group; in one launch.

One program does it all, so that nothing but a barrier lies between the layers. In double precision, as the other
runners: a flag that is decided by a sign must not flip with the order of a sum. What the numbers mean is not known
here: ranges, normaliser, weights and the basis of the group controls are tensors.
Importing this module imports triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _clip(x, low, high):
    # NaN stays NaN: whoever reads the answer must see it
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _clean(x, low, high):
    return _clip(tl.where(x != x, 0.0, x), low, high)


@triton.jit
def _tanh(x):
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def _store_normalised(x, index, mask, mean, inverse_std, scratch, CLIP: tl.constexpr):
    # observations are float32 in every runner
    value = x.to(tl.float32).to(tl.float64)
    shift = tl.load(mean + index, mask=mask, other=0.0)
    scale = tl.load(inverse_std + index, mask=mask, other=0.0)
    tl.store(scratch + index, _clip((value - shift) * scale, -CLIP, CLIP), mask=mask)


@triton.jit
def _observe(
    groups, globals_, n, group_range, global_range, mean, inverse_std, scratch,
    FEATURES: tl.constexpr, GLOBALS: tl.constexpr, FEATURE_TILE: tl.constexpr, GLOBAL_TILE: tl.constexpr,
    GROUP_TILE: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, GLOBAL_TILE)
    inside = i < GLOBALS
    told = tl.load(globals_ + i, mask=inside, other=0.0)
    low = tl.load(global_range + i, mask=inside, other=0.0)
    high = tl.load(global_range + GLOBALS + i, mask=inside, other=0.0)
    _store_normalised(_clean(told, low, high), i, inside, mean, inverse_std, scratch, CLIP)
    f = tl.arange(0, FEATURE_TILE)
    inside = f < FEATURES
    low = tl.load(group_range + f, mask=inside, other=0.0)
    high = tl.load(group_range + FEATURES + f, mask=inside, other=0.0)
    total = tl.zeros((FEATURE_TILE,), tl.float64)
    top = tl.full((FEATURE_TILE,), float("-inf"), tl.float32)
    for start in range(0, n, GROUP_TILE):
        g = start + tl.arange(0, GROUP_TILE)
        here = (g < n)[:, None] & inside[None, :]
        value = tl.load(groups + g[:, None] * FEATURES + f[None, :], mask=here, other=0.0)
        value = _clean(value, low[None, :], high[None, :])
        total += tl.sum(tl.where(here, value.to(tl.float64), 0.0), axis=0)
        top = tl.maximum(top, tl.max(tl.where(here, value, float("-inf")), axis=0))
    _store_normalised(total / n, GLOBALS + f, inside, mean, inverse_std, scratch, CLIP)
    _store_normalised(top, GLOBALS + FEATURES + f, inside, mean, inverse_std, scratch, CLIP)


@triton.jit
def _layer(x, weight, bias, y, width_in, width_out, last, RELU: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr):
    for first in range(0, width_out, OUT):
        o = first + tl.arange(0, OUT)
        total = tl.load(bias + o, mask=o < width_out, other=0.0).to(tl.float64)
        for start in range(0, width_in, IN):
            i = start + tl.arange(0, IN)
            read = (o < width_out)[:, None] & (i < width_in)[None, :]
            w = tl.load(weight + o[:, None] * width_in + i[None, :], mask=read, other=0.0).to(tl.float64)
            total += tl.sum(w * tl.load(x + i, mask=i < width_in, other=0.0)[None, :], axis=1)
        active = tl.where(total < 0, 0.0, total) if RELU else _tanh(total)
        tl.store(y + o, tl.where(last, _clip(total, -1.0, 1.0), active), mask=o < width_out)


@triton.jit
def _coefficient(actions, table, b: tl.constexpr, c: tl.constexpr, CONTROLS: tl.constexpr):
    at = tl.load(table + b * CONTROLS + c)
    return tl.load(actions + tl.maximum(at, 0), mask=at >= 0, other=0.0)


@triton.jit
def policy_kernel(
    groups, globals_, n, group_range, global_range, mean, inverse_std, weights, layout, table, basis, control_range,
    scratch, out_groups, out_globals,
    LAYERS: tl.constexpr, RELU: tl.constexpr, STRIDE: tl.constexpr, CLIP: tl.constexpr, FEATURES: tl.constexpr,
    GLOBALS: tl.constexpr, FEATURE_TILE: tl.constexpr, GLOBAL_TILE: tl.constexpr, GROUP_TILE: tl.constexpr,
    BASIS: tl.constexpr, CONTROLS: tl.constexpr, GLOBAL_CONTROLS: tl.constexpr, CONTROL_TILE: tl.constexpr,
    TERMS: tl.constexpr, GAIN: tl.constexpr, SATURATION: tl.constexpr, BIAS_AT: tl.constexpr, RATIO_AT: tl.constexpr,
    EVICT_AT: tl.constexpr, RATIO_MAX: tl.constexpr, EVICT_MAX: tl.constexpr, WINDOW_AT: tl.constexpr,
    OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """See `PolicyTensors` for the shapes. ``layout (LAYERS, 4)``: width in, width out, where weight and bias begin."""
    _observe(
        groups, globals_, n, group_range, global_range, mean, inverse_std, scratch,
        FEATURES, GLOBALS, FEATURE_TILE, GLOBAL_TILE, GROUP_TILE, CLIP,
    )  # fmt: skip
    for layer in range(LAYERS):
        tl.debug_barrier()  # what one thread has stored, all may load
        width_in, width_out = tl.load(layout + layer * 4), tl.load(layout + layer * 4 + 1)
        weight, bias = weights + tl.load(layout + layer * 4 + 2), weights + tl.load(layout + layer * 4 + 3)
        x, y = scratch + (layer % 2) * STRIDE, scratch + ((layer + 1) % 2) * STRIDE
        _layer(x, weight, bias, y, width_in, width_out, layer == LAYERS - 1, RELU, OUT, IN)
    tl.debug_barrier()
    actions = scratch + (LAYERS % 2) * STRIDE

    for start in range(0, n, GROUP_TILE):
        g = start + tl.arange(0, GROUP_TILE)
        inside = g < n
        bias_sum = tl.zeros((GROUP_TILE,), tl.float64)
        ratio_sum = tl.zeros((GROUP_TILE,), tl.float64)
        evict_sum = tl.zeros((GROUP_TILE,), tl.float64)
        for b in tl.static_range(BASIS):
            # basis (BASIS, 3): column (-1: none), scale, shift
            column = tl.load(basis + b * 3).to(tl.int32)
            has = column >= 0
            column = tl.maximum(column, 0)
            value = tl.load(groups + g * FEATURES + column, mask=inside & has, other=0.0)
            low, high = tl.load(group_range + column), tl.load(group_range + FEATURES + column)
            value = _clean(value, low, high).to(tl.float64)
            value = tl.where(has, value * tl.load(basis + b * 3 + 1), 0.0) + tl.load(basis + b * 3 + 2)
            bias_sum += value * _coefficient(actions, table, b, BIAS_AT, CONTROLS)
            ratio_sum += value * _coefficient(actions, table, b, RATIO_AT, CONTROLS)
            evict_sum += value * _coefficient(actions, table, b, EVICT_AT, CONTROLS)
        ratio = _clip(_tanh(GAIN * ratio_sum) / SATURATION, -1.0, 1.0)
        evict = _clip(_tanh(GAIN * evict_sum) / SATURATION, -1.0, 1.0)
        row = out_groups + g * CONTROLS
        tl.store(row + BIAS_AT, _tanh(GAIN * bias_sum).to(tl.float32), mask=inside)
        tl.store(row + RATIO_AT, (1 + (RATIO_MAX - 1) * (ratio + 1) / 2).to(tl.float32), mask=inside)
        tl.store(row + EVICT_AT, (EVICT_MAX * tl.where(evict < 0, 0.0, evict)).to(tl.float32), mask=inside)

    k = tl.arange(0, CONTROL_TILE)
    inside = k < GLOBAL_CONTROLS
    a = tl.load(actions + TERMS + k, mask=inside, other=0.0)
    low = tl.load(control_range + k, mask=inside, other=1.0).to(tl.float64)
    high = tl.load(control_range + GLOBAL_CONTROLS + k, mask=inside, other=1.0).to(tl.float64)
    positive = tl.where((k == WINDOW_AT) & inside, low, 1.0)
    factor = tl.where((k == WINDOW_AT) & inside, high, 1.0) / positive
    value = low + (high - low) * (a + 1) / 2
    value = tl.where(k == WINDOW_AT, positive * tl.exp(tl.log(factor) * (a + 1) / 2), value)
    tl.store(out_globals + k, value.to(tl.float32), mask=inside)


@dataclass(frozen=True)
class PolicyTensors:
    """A network on a device. F features, G globals, B basis terms, C controls of a group, K global controls."""

    group_range: Tensor
    """(2, F) float32: lower and upper ends."""
    global_range: Tensor
    """(2, G) float32."""
    mean: Tensor
    """(G + 2F,) float64."""
    inverse_std: Tensor
    """(G + 2F,) float64."""
    weights: Tensor
    """Every layer's weight (out, in) and bias (out,), one after the other, float32."""
    layout: Tensor
    """(layers, 4) int32: width in, width out, where weight and bias begin."""
    table: Tensor
    """(B, C) int32: the output that is the coefficient, or -1."""
    basis: Tensor
    """(B, 3) float64: column (-1: the constant), scale, shift."""
    control_range: Tensor
    """(2, K) float32."""
    scratch: Tensor
    """(2, widest) float64."""

    def to(self, device: torch.device | str) -> PolicyTensors:
        """The same on `device`."""
        return PolicyTensors(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def launch_constants(tensors: PolicyTensors, constants: dict[str, float | int | bool]) -> dict[str, float | int | bool]:
    """All of the kernel's constants: sizes and tiles from the shapes, the rest from `constants`."""
    features, controls = tensors.group_range.shape[1], tensors.table.shape[1]
    global_controls = tensors.control_range.shape[1]
    return {
        "LAYERS": len(tensors.layout),
        "STRIDE": tensors.scratch.shape[1],
        "FEATURES": features,
        "GLOBALS": tensors.global_range.shape[1],
        "FEATURE_TILE": triton.next_power_of_2(features),
        "GLOBAL_TILE": triton.next_power_of_2(tensors.global_range.shape[1]),
        "GROUP_TILE": 64,
        "BASIS": tensors.table.shape[0],
        "CONTROLS": controls,
        "GLOBAL_CONTROLS": global_controls,
        "CONTROL_TILE": triton.next_power_of_2(global_controls),
        "OUT": 32,
        "IN": 32,
        **constants,
    }


def triton_policy(
    groups: Tensor, globals_: Tensor, tensors: PolicyTensors, constants: dict, out_groups: Tensor, out_globals: Tensor
) -> None:
    """Decide: one launch on the current stream, nothing allocated, nothing synchronised: safe in a CUDA graph.

    Args:
        groups: ``(n, F)`` float32, contiguous.
        globals_: ``(G,)`` float32.
        tensors: The network.
        constants: Of `launch_constants`.
        out_groups: ``(n, C)`` float32, written.
        out_globals: ``(K,)`` float32, written.
    """
    t = tensors
    policy_kernel[(1,)](
        groups, globals_, groups.shape[0], t.group_range, t.global_range, t.mean, t.inverse_std, t.weights, t.layout,
        t.table, t.basis, t.control_range, t.scratch, out_groups, out_globals, **constants, num_warps=4,
    )  # fmt: skip
