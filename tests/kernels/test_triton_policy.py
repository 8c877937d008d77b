"""The policy kernel, interpreted here and compiled ahead of time in a second process (one cannot do both)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.policy import NumpyRunner, PolicyNetwork, random_telemetry
from pikv_runtime.policy.triton_runner import TritonRunner

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


def worst_difference(network, num_groups, samples, device=""):
    reference, runner, rng = NumpyRunner(network), TritonRunner(network, device), np.random.default_rng(0)
    one, two, worst = Control.zeros(num_groups), Control.zeros(num_groups), 0.0
    for k in range(samples):
        telemetry = random_telemetry(num_groups, rng)
        if k % 3 == 1:
            telemetry.groups *= 3
            telemetry.groups[rng.random(telemetry.groups.shape) < 0.1] = np.nan
            telemetry.globals[rng.integers(len(telemetry.globals))] = -np.inf
        reference.decide(telemetry, one)
        runner.decide(telemetry, two)
        worst = max(worst, np.abs(one.groups - two.groups).max(), np.abs(one.globals - two.globals).max())
    return worst


@interpreted
@pytest.mark.parametrize(
    ("hidden", "activation", "num_groups"),
    [
        ((33, 64), "tanh", 65),
        ((), "tanh", 1),
        pytest.param((64, 64), "tanh", 32, marks=pytest.mark.slow),
        pytest.param((33, 70, 5), "relu", 200, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_kernel_decides_as_the_reference(hidden, activation, num_groups):
    assert worst_difference(PolicyNetwork.random(hidden, "coef", activation), num_groups, 4) <= 1e-5


@interpreted
def test_kernel_shows_nan():
    network = PolicyNetwork.random((8,))
    network.layers[-1][1][:] = np.nan
    control = TritonRunner(network).decide(Telemetry.zeros(3))
    assert np.isnan(control.globals).all() and np.isnan(control.groups[:, 1:]).all()


@interpreted
def test_kernel_writes_only_its_outputs():
    runner = TritonRunner(PolicyNetwork.random((8,)))
    told = random_telemetry(5, np.random.default_rng(1))
    groups, globals_ = torch.from_numpy(told.groups.copy()), torch.from_numpy(told.globals.copy())
    out = Control.zeros(5)
    guarded = torch.full((out.groups.size + 8,), 7.0), torch.full((out.globals.size + 8,), 7.0)
    views = guarded[0][4:-4].view(out.groups.shape), guarded[1][4:-4]
    runner.launch(groups, globals_, *views)
    for array in guarded:
        assert (array[:4] == 7).all() and (array[-4:] == 7).all()
    np.testing.assert_array_equal(groups.numpy(), told.groups)
    np.testing.assert_allclose(views[0].numpy(), NumpyRunner(runner.network).decide(told).groups, atol=1e-5)


@pytest.mark.parametrize("view", ["box", "discrete"])
def test_other_views_are_refused(view):
    with pytest.raises(ValueError, match=f"serves the view 'coef', not '{view}'"):
        TritonRunner(PolicyNetwork.random((8,), view, num_groups=4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_groups", [32, 512])
def test_kernel_on_a_gpu_in_a_graph_decides_as_the_reference(num_groups):
    assert worst_difference(PolicyNetwork.random((64, 64)), num_groups, 50, "cuda") <= 1e-5


def test_kernel_compiles_for_gpus_without_spills():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("aot_policy.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    builds = [json.loads(line) for line in done.stdout.splitlines()]
    assert {build["arch"] for build in builds} == {80, 90}
    for build in builds:
        assert build["stack"] == 0 and build["local"] == 0, build
        assert build["barriers"] >= build["layers"], build  # the scratch of one layer is whole before the next reads it


def test_without_a_device_it_says_what_to_use_instead():
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("there is a device, or the interpreter stands for one")
    with pytest.raises(ValueError, match="needs a CUDA device"):
        TritonRunner(PolicyNetwork.random((8,)))
