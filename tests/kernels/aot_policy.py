"""Compile the policy kernel for GPUs that are not here; print one JSON object per build.

Run without TRITON_INTERPRET: one process cannot both interpret and compile.
"""

from __future__ import annotations

import inspect
import json

import torch
import triton
from aot_gate import resources
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pikv_kernels.triton_policy import launch_constants, policy_kernel
from pikv_runtime.policy import PolicyNetwork
from pikv_runtime.policy.triton_runner import policy_constants, policy_tensors

TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32"}


def source(network: PolicyNetwork) -> ASTSource:
    tensors = policy_tensors(network)
    constants = launch_constants(tensors, policy_constants(network))
    types = {name: TYPES[tensor.dtype] for name, tensor in vars(tensors).items()}
    names = list(inspect.signature(policy_kernel.fn).parameters)
    signature = {n: "constexpr" if n in constants else "i32" if n == "n" else types.get(n, "*fp32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")}
    return ASTSource(policy_kernel, signature, constants, aligned)


if __name__ == "__main__":
    assert knobs.nvidia.cuobjdump.path
    for arch in (80, 90):
        for activation in ("tanh", "relu"):
            network = PolicyNetwork.random((64, 64), "coef", activation)
            compiled = triton.compile(source(network), target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
            barriers = compiled.asm["ptx"].count("bar.sync")
            found = {"arch": arch, "build": activation, "layers": len(network.layers), "barriers": barriers}
            print(json.dumps(found | resources(compiled.asm["cubin"])), flush=True)
