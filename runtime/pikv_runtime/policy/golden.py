"""Golden pairs: telemetry and the control expected for it; they prove that a bundle is evaluated right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pikv_runtime.contract import Array, Control, Telemetry
from pikv_runtime.policy.base import Policy
from pikv_runtime.policy.manifest import BundleError
from pikv_runtime.policy.network import PolicyNetwork, check_tensor
from pikv_runtime.policy.numpy_runner import NumpyRunner
from pikv_runtime.views.base import GLOBAL_BOUNDS, GROUP_BOUNDS

GoldenPair = tuple[Telemetry, Control]

TOLERANCE = 1e-5
"""Allowed difference, relative to the larger of 1 and the expected value."""
_PARTS = ("groups", "globals", "control_groups", "control_globals")


def random_telemetry(num_groups: int, rng: np.random.Generator) -> Telemetry:
    """Uniform over the declared ranges: not credible, but everywhere."""
    telemetry = Telemetry.zeros(num_groups)
    telemetry.groups[:] = rng.uniform(*GROUP_BOUNDS, size=telemetry.groups.shape)
    telemetry.globals[:] = rng.uniform(*GLOBAL_BOUNDS)
    return telemetry


def make_golden(network: PolicyNetwork, samples: int = 8, seed: int = 0) -> list[GoldenPair]:
    """`samples` pairs by the reference runner for each of two group counts (or the only one served)."""
    rng, runner = np.random.default_rng(seed), NumpyRunner(network)
    counts = (4, 32) if network.num_groups is None else (network.num_groups,)
    told = [random_telemetry(n, rng) for n in counts for _ in range(samples)]
    return [(telemetry, runner.decide(telemetry)) for telemetry in told]


def pack(pairs: Sequence[GoldenPair]) -> dict[str, Array]:
    """Pairs as tensors, stacked by number of groups."""
    tensors = {}
    for count in sorted({len(told.groups) for told, _ in pairs}):
        alike = [(t, c) for t, c in pairs if len(t.groups) == count]
        rows = [(t.groups, t.globals, c.groups, c.globals) for t, c in alike]
        for part, arrays in zip(_PARTS, zip(*rows, strict=True), strict=True):
            tensors[f"{count}.{part}"] = np.stack(arrays).astype(np.float32)
    return tensors


def unpack(tensors: dict[str, Array]) -> list[GoldenPair]:
    """Inverse of `pack`; raises BundleError."""
    pairs = []
    counts = {name.partition(".")[0] for name in tensors}
    if not counts or any(not c.isdecimal() or not 1 <= int(c) <= 4096 for c in counts):
        raise BundleError(f"golden.safetensors names tensors of {sorted(counts)} groups: must be 1..4096")
    if tensors.keys() != {f"{count}.{part}" for count in counts for part in _PARTS}:
        raise BundleError(f"golden.safetensors must hold {', '.join(_PARTS)} for every number of groups")
    for count in sorted(counts, key=int):
        arrays = [tensors[f"{count}.{part}"] for part in _PARTS]
        one = (Telemetry.zeros(int(count)), Control.zeros(int(count)))
        samples = len(arrays[0]) if arrays[0].ndim else 0
        shapes = [one[0].groups.shape, one[0].globals.shape, one[1].groups.shape, one[1].globals.shape]
        for part, array, shape in zip(_PARTS, arrays, shapes, strict=True):
            try:
                check_tensor(f"{count}.{part}", array, (samples, *shape))
            except ValueError as error:
                raise BundleError(f"golden.safetensors: {error}") from None
        pairs += [(Telemetry(g, x), Control(cg, cx)) for g, x, cg, cx in zip(*arrays, strict=True)]
    if not pairs:
        raise BundleError("golden.safetensors holds no pairs")
    return pairs


def check_golden(policy: Policy, pairs: Sequence[GoldenPair]) -> None:
    """Raise BundleError unless `policy` answers every pair within `TOLERANCE`."""
    for i, (telemetry, expected) in enumerate(pairs):
        answer = policy.decide(telemetry)
        for part in ("groups", "globals"):
            mine, wanted = getattr(answer, part), getattr(expected, part)
            error = np.abs(mine - wanted) / np.maximum(1, np.abs(wanted))
            if not error.max() <= TOLERANCE:
                raise BundleError(
                    f"golden pair {i} ({len(telemetry.groups)} groups) is not reproduced: control.{part} "
                    f"differs by {error.max():.3g}, allowed {TOLERANCE:g}"
                )
