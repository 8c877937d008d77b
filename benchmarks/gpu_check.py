"""Everything that needs a GPU, in one call of at most nine minutes: `python benchmarks/gpu_check.py`, `make gpu-check`.

Correctness of every kernel; speed against the copy bandwidth of the same card and against SDPA; decode steps at real
geometries; the engine on the device, by virtual ranks and by two processes; policy decisions. Each section has a time
budget and fails alone. Needs torch, numpy, safetensors and triton; transformers for the engine. `--device cpu` runs
the same code over the torch paths with tiny shapes. Status 0: all right; 1: a check failed, a target was missed or a
section raised; 2: no such device. A short table comes last; JSON goes to `--json`, or into the folder `$OUT`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
PATHS = [str(ROOT / "benchmarks"), str(ROOT / "runtime"), str(ROOT / "kernels")]
sys.path[:0] = PATHS  # the project need not be installed there
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])  # for processes started here

from gpu import correctness, decode_step, serving, speed  # noqa: E402
from gpu.report import Context, Report  # noqa: E402

PACKAGES = ("torch", "triton", "numpy", "safetensors", "transformers", "numba")
SECTIONS = (
    ("attention", correctness.check_attention, 75),
    ("kernels", correctness.check_other_kernels, 60),
    ("copy", speed.measure_copy, 10),
    ("dense", speed.time_dense, 60),
    ("small", speed.time_small, 10),
    ("sparse", speed.time_sparse, 20),
    ("writing", speed.time_writing, 15),
    ("steps", decode_step.time_steps, 80),
    ("policies", serving.time_policies, 20),
    ("engine", serving.check_engine, 90),
    ("processes", serving.check_two_processes, 50),
    ("sweep", speed.sweep, 30),
)
"""Name, function and seconds, in order; 520 seconds together. What later sections need of earlier ones: `copy`."""
NEEDS_TRANSFORMERS = ("engine", "processes")


def warm_compile_cache() -> subprocess.Popen[bytes]:
    """Serve on the CPU in a process of its own, so that numba has compiled the ledger when the engine's turn comes."""
    folder = tempfile.mkdtemp(prefix="pikv-gpu-check-")
    command = [sys.executable, __file__, "--device", "cpu", "--only", "engine", "--json", f"{folder}/warm.json"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def meta(device: torch.device) -> dict[str, Any]:
    """Machine, date, commit and versions that the numbers belong to."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    try:
        git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = git.stdout.strip() or None
    except OSError:  # a copy of the tree, on a machine without git
        commit = None
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    date = datetime.date.today().isoformat()
    return {"machine": f"{gpu}, {platform.node()}", "date": date, "commit": commit, "versions": versions}


def write(path: Path, report: Report, device: torch.device) -> None:
    """After every section: a run that is cut off keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"rows": report.rows, "sections": report.sections, "failures": report.failures, "meta": meta(device)}
    path.write_text(json.dumps(result, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ["OUT"]) / "gpu_check.json" if "OUT" in os.environ else None
    names = [name for name, *_ in SECTIONS]
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="*", choices=names, default=names, metavar="SECTION", help=", ".join(names))
    parser.add_argument("--json", type=Path, default=default, help="write the rows here ($OUT/gpu_check.json)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was checked (--device cpu runs the same code over torch)", file=sys.stderr)
        return 2
    device, report = torch.device(arguments.device), Report()
    context, wanted = Context(device, tiny=device.type == "cpu"), set(arguments.only)
    if importlib.util.find_spec("transformers") is None and wanted & set(NEEDS_TRANSFORMERS):
        print(f"without transformers these are skipped: {', '.join(NEEDS_TRANSFORMERS)}")
        wanted -= set(NEEDS_TRANSFORMERS)
    if wanted & {"dense", "sparse", "writing", "sweep"}:
        wanted.add("copy")
    warming = warm_compile_cache() if device.type == "cuda" and wanted & set(NEEDS_TRANSFORMERS) else None
    for name, section, budget_s in SECTIONS:
        if name in wanted:
            if name == "engine" and warming is not None:
                _finish(warming)
            report.run(name, section, context, budget_s)
            if arguments.json is not None:
                write(arguments.json, report, device)
    print(report.table())
    print("failed:\n  " + "\n  ".join(report.failures) if report.failures else "all checks passed")
    return 1 if report.failures else 0


def _finish(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(main())
