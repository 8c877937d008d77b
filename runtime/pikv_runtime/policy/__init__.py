"""Learned policies: bundles, their runners and the guard; heuristics come through the same door."""

from pikv_runtime.policy.base import Policy
from pikv_runtime.policy.bundle import Bundle, load_bundle, save_bundle
from pikv_runtime.policy.decision_log import DecisionLog, DecisionLogError, Logged, header_of
from pikv_runtime.policy.golden import GoldenPair, make_golden, random_telemetry
from pikv_runtime.policy.guard import Guard, GuardLimits
from pikv_runtime.policy.linear import linear_network
from pikv_runtime.policy.loading import RUNNERS, BundlePolicy, load_policy
from pikv_runtime.policy.manifest import BundleError, Manifest
from pikv_runtime.policy.native_runner import NativeRunner
from pikv_runtime.policy.network import PolicyNetwork
from pikv_runtime.policy.numpy_runner import NumpyRunner
from pikv_runtime.policy.replay import replay, what_if
from pikv_runtime.policy.shadow import Shadow
from pikv_runtime.policy.watching import Watch
from pikv_runtime.policy.worker import WorkerError, WorkerPolicy

__all__ = [
    "RUNNERS",
    "Bundle",
    "BundleError",
    "BundlePolicy",
    "DecisionLog",
    "DecisionLogError",
    "GoldenPair",
    "Guard",
    "GuardLimits",
    "Logged",
    "Manifest",
    "NativeRunner",
    "NumpyRunner",
    "Policy",
    "PolicyNetwork",
    "Shadow",
    "Watch",
    "WorkerError",
    "WorkerPolicy",
    "header_of",
    "linear_network",
    "load_bundle",
    "load_policy",
    "make_golden",
    "random_telemetry",
    "replay",
    "save_bundle",
    "what_if",
]
