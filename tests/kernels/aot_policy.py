"""Compile the policy kernel, as its launcher launches it, for GPUs that are not here; print one JSON object per build.

Run without TRITON_INTERPRET: one process cannot both interpret and compile.
"""

from __future__ import annotations

import json

import torch
import triton
from aot_gate import Launch, disassembled, launches, resources, source
from triton.backends.compiler import GPUTarget

from pikv_kernels.triton_policy import launch_constants, triton_policy
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.policy import PolicyNetwork
from pikv_runtime.policy.triton_runner import policy_constants, policy_tensors

GROUPS = 32


def launch(network: PolicyNetwork) -> Launch:
    """The kernel and its arguments, as a decision would launch it."""
    tensors = policy_tensors(network)
    constants = launch_constants(tensors, policy_constants(network))
    told, out = Telemetry.zeros(GROUPS), Control.zeros(GROUPS)
    arrays = [torch.from_numpy(array) for array in (told.groups, told.globals, out.groups, out.globals)]
    with launches() as seen:
        triton_policy(*arrays[:2], tensors, constants, *arrays[2:])
    (only,) = seen
    return only


if __name__ == "__main__":
    for arch in (80, 90):
        for activation in ("tanh", "relu"):
            network = PolicyNetwork.random((64, 64), "coef", activation)
            kernel, bound = launch(network)
            options = {"num_warps": bound["num_warps"]}
            built = triton.compile(source(kernel, bound), target=GPUTarget("cuda", arch, 32), options=options)
            cubin, barriers = built.asm["cubin"], built.asm["ptx"].count("bar.sync")
            found = {"arch": arch, "build": activation, "layers": len(network.layers), "barriers": barriers}
            print(json.dumps(found | resources(cubin, disassembled(cubin))), flush=True)
