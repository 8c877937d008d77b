"""`benchmarks/gpu_check.py` where there is no GPU: a clear refusal, and the same code over torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_check.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=280)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_gives_status_2() -> None:
    done = run()
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("no CUDA device here") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_same_code_runs_over_torch(tmp_path: Path) -> None:
    result = tmp_path / "check.json"
    done = run("--device", "cpu", "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all checks passed"
    report = json.loads(result.read_text())
    assert {tuple(row) for row in report["rows"]} == {("name", "value", "unit", "baseline", "ratio")}
    assert set(report["meta"]) == {"machine", "date", "commit", "versions"}
    for part in ("kernel error", "decode attention", "engine tokens", "engine forward", "policy decision"):
        assert any(row["name"].startswith(part) for row in report["rows"]), part
