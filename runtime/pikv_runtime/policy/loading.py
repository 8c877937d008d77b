"""From a name to a policy: bundles and heuristics, runners, guard."""

from __future__ import annotations

import difflib
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.controllers import CONTROLLERS, is_spec, make_policy
from pikv_runtime.policy.base import Policy, PolicyLike
from pikv_runtime.policy.bundle import Bundle, load_bundle
from pikv_runtime.policy.golden import check_golden
from pikv_runtime.policy.guard import Guard, GuardLimits
from pikv_runtime.policy.manifest import BundleError
from pikv_runtime.policy.native_runner import NativeRunner
from pikv_runtime.policy.network import PolicyNetwork
from pikv_runtime.policy.numpy_runner import NumpyRunner
from pikv_runtime.policy.toolchain import NativeBuildError
from pikv_runtime.policy.worker import PREFIX, WorkerPolicy
from pikv_runtime.rankers import RANKERS
from pikv_runtime.registry import Registry

DEFAULT_FALLBACK = "lazy/h2o"
UNHURRIED_S = 10.0
"""How long a policy in Python may think where no guard watches: in replays and evaluations."""
_LOG = logging.getLogger("pikv")


@functools.cache
def _warn_once(reason: str) -> None:
    _LOG.warning("native runner not available, numpy decides instead: %s", reason)


def _native_or_numpy(network: PolicyNetwork) -> Policy:
    try:
        return NativeRunner(network)
    except NativeBuildError as error:
        _warn_once(str(error))
        return NumpyRunner(network)


def _triton(network: PolicyNetwork) -> Policy:
    from pikv_runtime.policy.triton_runner import TritonRunner  # torch and triton are imported by who asks for them

    return TritonRunner(network)


RUNNERS: Registry[Callable[[PolicyNetwork], Policy]] = Registry("runner")
RUNNERS.add("numpy", NumpyRunner)
RUNNERS.add("native", _native_or_numpy)
RUNNERS.add("triton", _triton)


class BundlePolicy:
    """A verified bundle behind a runner."""

    def __init__(self, bundle: Bundle, runner: str = "native") -> None:
        self.bundle = bundle
        self.name = f"{bundle.manifest.name}-{bundle.manifest.version}"
        self.runner = RUNNERS[runner](bundle.network)
        self.decide = self.runner.decide  # no frame of our own in the hot path
        check_golden(self.runner, bundle.golden)


def load_policy(
    path_or_spec: str | os.PathLike[str],
    runner: str = "native",
    guard: bool = True,
    fallback: str = DEFAULT_FALLBACK,
    strict: bool = True,
    limits: GuardLimits | None = None,
) -> Policy:
    """A policy ready to decide.

    Args:
        path_or_spec: Folder of a bundle, a heuristic such as `h2o` or `static:ratio=2/h2o`, or a class in Python,
            `python:FILE.py:CLASS`, which runs in a process of its own.
        runner: `native` (compiled C; numpy where there is no compiler), `numpy`, or `triton` (on a CUDA device).
        guard: Watch a bundle or a class and fall back to `fallback`. Heuristics need no guard.
        fallback: Spec of a heuristic.
        strict: Raise on a refused bundle; otherwise log the reason and return the fallback.
        limits: Of the guard.

    Raises:
        BundleError: The bundle is refused (`strict` only).
        ValueError: No such file or class.
        UnknownNameError: No such heuristic or runner.
    """
    RUNNERS[runner]
    heuristic = make_policy(fallback)
    if isinstance(path_or_spec, str) and path_or_spec.startswith(PREFIX):
        limits = limits or GuardLimits()
        worker = WorkerPolicy(path_or_spec, limits.timeout_us / 1e6 if guard else UNHURRIED_S)
        return Guard(worker, heuristic, limits) if guard else worker
    if isinstance(path_or_spec, str) and not _is_path(path_or_spec):
        return make_policy(path_or_spec)
    try:
        policy = BundlePolicy(load_bundle(Path(path_or_spec).expanduser()), runner)
    except BundleError as error:
        if strict:
            raise
        _LOG.error("bundle %s refused, %s decides: %s", path_or_spec, heuristic.name, error)
        return heuristic
    return Guard(policy, heuristic, limits) if guard else policy


class _Function:
    """A function from telemetry to control, as a policy."""

    def __init__(self, function: Callable[[Telemetry], Control]) -> None:
        self._function = function

    def decide(self, telemetry: Telemetry, out: Control | None = None) -> Control:
        """See `Policy.decide`."""
        control = self._function(telemetry)
        if out is None:
            return control
        out.groups[:], out.globals[:] = control.groups, control.globals
        return out


def as_policy(policy: PolicyLike, ranker: str, window_pages: int) -> Policy:
    """The policy that `policy` stands for; None: nothing lossy, `ranker`'s order, that many recent pages always read.

    Raises:
        BundleError, UnknownNameError: See `load_policy`.
        TypeError: Nothing that decides.
    """
    if policy is None:
        return make_policy(f"static:window={window_pages}/{ranker}")
    if isinstance(policy, str | os.PathLike):
        return load_policy(policy)
    if isinstance(policy, Policy):
        return policy
    if callable(policy):
        return _Function(policy)
    raise TypeError(f"policy={policy!r}: wanted a spec, a bundle's folder, an object with decide, or a function")


def _is_path(text: str) -> bool:
    """Heuristics come first: a folder that is named like one is reached by './'."""
    if is_spec(text):
        return False
    if text.startswith((".", "~", os.sep)) or Path(text).exists():
        return True
    return os.sep in text and not _is_misspelt(text)


def _is_misspelt(text: str) -> bool:
    """Whether a name with a slash, under which no folder is, was probably meant as `controller/ranker`."""
    head, _, ranker = text.partition(os.sep)
    return ranker in RANKERS or bool(difflib.get_close_matches(head.partition(":")[0], CONTROLLERS.names()))
