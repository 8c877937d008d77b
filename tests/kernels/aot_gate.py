"""Compile every kernel, as its launcher launches it, for GPUs that are not here; print one JSON object per build.

Run without TRITON_INTERPRET: one process cannot both interpret and compile. The launchers run on CPU tensors, and what
they would launch is compiled instead: the builds are those of real calls, argument types and all.

    python tests/kernels/aot_gate.py --write tests/kernels/resources.json    # after a change that is meant
    python tests/kernels/aot_gate.py --arch 90 --only "decode int4" --sass FOLDER
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from aot_builds import EVERYWHERE, VARIANTS
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

ARCHS, TUNED = (80, 90, 100), 90
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.uint8: "*u8",
    torch.float64: "*fp64", torch.int8: "*i8", torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1",
}  # fmt: skip
Launch = tuple[JITFunction, dict[str, Any]]


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """Collects (kernel, arguments by name) instead of launching."""
    seen: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = list(kernel.signature.parameters)
        seen.append((kernel, dict(zip(names, args, strict=False)) | kwargs))

    original, JITFunction.run = JITFunction.run, record
    try:
        yield seen
    finally:
        JITFunction.run = original


def source(kernel: JITFunction, arguments: dict[str, Any]) -> ASTSource:
    constants = {p.name: arguments[p.name] for p in kernel.params if p.is_constexpr}
    names = list(kernel.signature.parameters)
    signature = {name: "constexpr" if name in constants else _type_of(arguments[name]) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")}
    return ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()}, aligned)


def _type_of(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return POINTERS[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


def resources(cubin: bytes, sass: str) -> dict[str, int]:
    """Registers and bytes of stack; how often some instructions stand in the whole kernel."""
    usage = _told(knobs.nvidia.cuobjdump.path, "-res-usage", cubin=cubin)
    found = {name.lower(): int(n) for name, n in re.findall(r"(REG|STACK):(\d+)", usage)}
    patterns = {
        "local": r"\b(?:STL|LDL)\b",
        "tensor_core": r"\b(?:HMMA|WGMMA|HGMMA|UTCHMMA)\b",
        "wide_loads": r"\b(?:LDG|LDGSTS)\.\S*128",
        "instructions": r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?[A-Z]",
    }
    return found | {name: len(re.findall(pattern, sass)) for name, pattern in patterns.items()}


def disassembled(cubin: bytes) -> str:
    return _told(knobs.nvidia.nvdisasm.path, cubin=cubin)


def _told(tool: str, *options: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout


def builds(only: str, archs: tuple[int, ...], variants: bool) -> Iterator[tuple[str, int, JITFunction, Any, Any]]:
    """Build name, architecture, kernel, source and options; a kernel that a call launches twice alike comes once."""
    for name, call in (EVERYWHERE | (VARIANTS if variants else {})).items():
        if only not in name:
            continue
        with launches() as seen:
            call()
        for kernel, bound in {kernel.fn.__name__: (kernel, bound) for kernel, bound in seen}.values():
            options = {name: bound[name] for name in OPTIONS if name in bound}
            for arch in archs if name in EVERYWHERE else set(archs) & {TUNED}:
                yield name, arch, kernel, source(kernel, bound), options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="*", default=ARCHS)
    parser.add_argument("--only", default="", help="builds whose name contains this")
    parser.add_argument("--everywhere", action="store_true", help="every kernel once, no other builds of it")
    parser.add_argument("--write", type=Path, help="the table that the tests compare with")
    parser.add_argument("--sass", type=Path, help="keep the machine code of each build in this folder")
    arguments = parser.parse_args()
    rows = []
    for name, arch, kernel, code, options in builds(arguments.only, tuple(arguments.arch), not arguments.everywhere):
        built = triton.compile(code, target=GPUTarget("cuda", arch, 32), options=options)
        row = {"build": name, "kernel": kernel.fn.__name__, "arch": arch, "shared": built.metadata.shared}
        sass = disassembled(built.asm["cubin"])
        rows.append(row | resources(built.asm["cubin"], sass))
        print(json.dumps(rows[-1]), flush=True)
        if arguments.sass is not None:
            stem = re.sub(r"\W+", "-", f"{name} {kernel.fn.__name__} {arch}")
            (arguments.sass / f"{stem}.ttgir").write_text(built.asm["ttgir"])
            (arguments.sass / f"{stem}.sass").write_text(sass)
    if arguments.write is not None:
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        version = json.dumps(triton.__version__)
        arguments.write.write_text(f'{{"triton": {version}, "builds": [\n  {lines}\n]}}\n')


if __name__ == "__main__":
    main()
