"""Compile the paged kernel for GPUs that are not here; print one JSON object per build.

Run without TRITON_INTERPRET: one process cannot both interpret and compile.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pikv_kernels import CODECS, PagePayload, PagePool
from pikv_kernels.triton_attention import launch_constants, paged_decode_kernel

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.uint8: "*u8"}
FP32_POINTERS = ("out", "lse", "page_lse")
INT_POINTERS = ("page_table", "tokens_in_page", "slot_codec", "slot_row")


def source(codecs: tuple[str, ...], dtype: torch.dtype, query_heads: int, mass: bool) -> ASTSource:
    pool = PagePool.of([PagePayload.zeros(codec, 1, 8, 16, 128, dtype) for codec in codecs])
    constants = launch_constants(pool, torch.zeros(1, query_heads, 128, dtype=dtype), mass)
    names = list(inspect.signature(paged_decode_kernel.fn).parameters)
    signature = {name: "constexpr" if name in constants else _type_of(name, dtype) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")}
    return ASTSource(paged_decode_kernel, signature, constants, aligned)


def _type_of(name: str, dtype: torch.dtype) -> str:
    if name in FP32_POINTERS:
        return "*fp32"
    if name in INT_POINTERS:
        return "*i32"
    if name == "scale":
        return "fp32"
    if name in ("rows", "max_pages", "pages_per_split"):
        return "i32"
    codec, _, field = name.partition("_")
    if codec not in CODECS:
        return POINTERS[dtype]
    return POINTERS[getattr(PagePayload.zeros(codec, 1, 1, 16, 32, dtype), field).dtype]


def resources(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.check_output([knobs.nvidia.cuobjdump.path, "-res-usage", file.name], text=True)
        sass = subprocess.check_output([knobs.nvidia.nvdisasm.path, file.name], text=True)
    found = {name.lower(): int(n) for name, n in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    return found | {
        "local": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "tensor_core": len(re.findall(r"\bHMMA\b|\bWGMMA\b|\bHGMMA\b", sass)),
    }


BUILDS = {
    "bf16 model": (("native", "int8"), torch.bfloat16, 32, False),
    "fp16 model, all codecs, mass": (CODECS, torch.float16, 32, True),
    "fp32 model, all codecs, mass": (CODECS, torch.float32, 32, True),
}

if __name__ == "__main__":
    for arch in (80, 90):
        for name, build in BUILDS.items():
            compiled = triton.compile(source(*build), target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
            print(json.dumps({"arch": arch, "build": name} | resources(compiled.asm["cubin"])))
            sys.stdout.flush()
