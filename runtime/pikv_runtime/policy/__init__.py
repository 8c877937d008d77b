"""Learned policies: bundles, their runners and the guard; heuristics come through the same door."""

from pikv_runtime.policy.base import Policy
from pikv_runtime.policy.bundle import Bundle, load_bundle, save_bundle
from pikv_runtime.policy.golden import GoldenPair, make_golden, random_telemetry
from pikv_runtime.policy.guard import Guard, GuardLimits
from pikv_runtime.policy.loading import RUNNERS, BundlePolicy, load_policy
from pikv_runtime.policy.manifest import BundleError, Manifest
from pikv_runtime.policy.native_runner import NativeRunner
from pikv_runtime.policy.network import PolicyNetwork
from pikv_runtime.policy.numpy_runner import NumpyRunner

__all__ = [
    "RUNNERS",
    "Bundle",
    "BundleError",
    "BundlePolicy",
    "GoldenPair",
    "Guard",
    "GuardLimits",
    "Manifest",
    "NativeRunner",
    "NumpyRunner",
    "Policy",
    "PolicyNetwork",
    "load_bundle",
    "load_policy",
    "make_golden",
    "random_telemetry",
    "save_bundle",
]
