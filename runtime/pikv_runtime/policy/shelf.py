"""The shelf: finding bundles by name, describing and verifying them, without the training stack."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from pikv_runtime.contract import Telemetry
from pikv_runtime.policy.base import Policy
from pikv_runtime.policy.bundle import Bundle, load_bundle
from pikv_runtime.policy.loading import load_policy
from pikv_runtime.policy.manifest import BundleError
from pikv_runtime.policy.native_runner import NativeRunner
from pikv_runtime.policy.network import PolicyNetwork
from pikv_runtime.policy.numpy_runner import NumpyRunner
from pikv_runtime.policy.toolchain import NativeBuildError

_TIMED = 2000


def shelf() -> list[Path]:
    """Folders in which bundles are looked for: here, in the checkout, in the installed package."""
    checkout = Path(__file__).parents[3]
    places = [Path("trained_policies"), checkout / "trained_policies"]
    # Looked for, not imported: the package that carries them may need what is not installed.
    places += [Path(entry) / "pikv_agents" / "_trained_policies" for entry in sys.path]
    return [p for p in dict.fromkeys(place.resolve() for place in places) if p.is_dir()]


def find_bundles(places: list[Path] | None = None) -> list[Path]:
    """All folders with a manifest in `places` (by default the shelf)."""
    return [m.parent for place in places or shelf() for m in sorted(place.glob("*/manifest.json"))]


def find_bundle(name: str) -> Path:
    """A bundle by path, or by name on the shelf.

    Raises:
        BundleError: There is none.
    """
    if Path(name).is_dir():
        return Path(name)
    known = find_bundles()
    for path in known:
        if name in (path.name, path.name.rpartition("-")[0]):
            return path
    raise BundleError(f"no bundle {name!r}: allowed {', '.join(p.name for p in known) or 'a path (none is installed)'}")


def golden_error(policy: Policy, bundle: Bundle) -> float:
    """Largest difference to the golden pairs, relative to the larger of 1 and the expected value."""
    worst = 0.0
    for told, expected in bundle.golden:
        answer = policy.decide(told)
        for part in ("groups", "globals"):
            wanted = getattr(expected, part)
            error = np.abs(getattr(answer, part) - wanted) / np.maximum(1, np.abs(wanted))
            worst = max(worst, float(error.max()))
    return worst


def decision_us(policy: Policy, told: Telemetry) -> float:
    """Median microseconds of a decision."""
    out = policy.decide(told)
    spans = np.empty(_TIMED)
    for k in range(_TIMED):
        begin = time.perf_counter()
        policy.decide(told, out)
        spans[k] = time.perf_counter() - begin
    return float(1e6 * np.median(spans))


def _compile(network: PolicyNetwork) -> tuple[NativeRunner, float]:
    """The native runner, and the seconds that it takes to build where nothing is cached."""
    with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, PIKV_CACHE=empty):
        begin = time.perf_counter()
        return NativeRunner(network), time.perf_counter() - begin


def line(path: Path) -> dict[str, Any]:
    """What a bundle says of itself, loaded with all checks but its runners untried; one that is refused says why."""
    try:
        manifest = load_bundle(path).manifest
    except BundleError as error:
        return {"bundle": path.name, "path": str(path), "refused": str(error)}
    return {
        "bundle": f"{manifest.name}-{manifest.version}",
        "path": str(path),
        "view": manifest.view,
        "contract": manifest.contract_version,
        "provenance": manifest.provenance,
    }


def describe(path: Path | str) -> dict[str, Any]:
    """Load a bundle with all checks and time its runners: the `policy` section of the report, and provenance.

    Raises:
        BundleError: The bundle is refused.
    """
    bundle = load_bundle(path)
    told = bundle.golden[0][0]
    reference = NumpyRunner(bundle.network)
    runners: dict[str, Policy] = {"numpy": reference}
    seconds = 0.0
    with contextlib.suppress(NativeBuildError):
        runners["native"], seconds = _compile(bundle.network)
    load_policy(path, guard=True)
    manifest = bundle.manifest
    return {
        "bundle": f"{manifest.name}-{manifest.version}",
        "path": str(path),
        "view": manifest.view,
        "contract": manifest.contract_version,
        "golden_pairs": len(bundle.golden),
        "golden_error": max(golden_error(runner, bundle) for runner in runners.values()),
        "decision_us": {name: decision_us(runner, told) for name, runner in runners.items()},
        "compile_seconds": seconds,
        "provenance": manifest.provenance,
    }
