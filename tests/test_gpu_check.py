"""`benchmarks/gpu_check.py` where there is no GPU: a clear refusal, and the same code over torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPT = FOLDER / "gpu_check.py"
QUICK = ("kernels", "dense", "small", "sparse", "writing", "steps", "policies", "sweep")
ROW = {"name", "value", "unit", "baseline", "ratio", "target", "ok"}


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=280)


def run_sections(result: Path, *sections: str) -> dict:
    done = run("--device", "cpu", "--json", str(result), "--only", *sections)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all checks passed"
    report = json.loads(result.read_text())
    assert all(set(row) == ROW for row in report["rows"])
    assert set(report["meta"]) == {"machine", "date", "commit", "versions"}
    assert all(section["error"] is None for section in report["sections"]) and not report["failures"]
    return report


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_gives_status_2() -> None:
    done = run()
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("no CUDA device here") and done.stderr.count("\n") == 1


def test_kernel_sections_run_over_torch(tmp_path: Path) -> None:
    report = run_sections(tmp_path / "check.json", *QUICK)
    assert [section["name"] for section in report["sections"]] == ["kernels", "copy", *QUICK[1:]]
    names = [row["name"] for row in report["rows"]]
    for part in ("recode native to int4", "SDPA", "decode int4", "10 % read set", "seal", "step of 2 layers, qwen3",
                 "projected to 48 layers", "policy decision"):  # fmt: skip
        assert any(name.startswith(part) for name in names), part
    # speeds have targets, which nothing but a GPU is judged by
    assert any(row["target"] and row["ok"] is None for row in report["rows"])
    assert any(row["ok"] for row in report["rows"])


@pytest.mark.slow
def test_engine_sections_run_over_torch(tmp_path: Path) -> None:
    report = run_sections(tmp_path / "check.json", "attention", "engine", "processes")
    names = " ".join(row["name"] for row in report["rows"])
    for part in (
        "attention, native+bf16",
        "engine, 1 virtual",
        "engine, 2 virtual",
        "process 0 of 2",
        "process 1 of 2",
    ):
        assert part in names, part


def test_a_section_that_raises_fails_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from gpu.report import Context, Report

    report, context = Report(), Context(torch.device("cpu"), tiny=True)

    def breaks(report: Report, context: Context) -> None:
        report.add("before", 1.0, "us")
        raise ValueError("out of luck")

    def judges(report: Report, context: Context) -> None:
        report.add("error", 2.0, "", target="<= 1", ok=False)
        assert not context.out_of_time() and context.out_of_time(needs_s=99.0)

    report.run("breaks", breaks, context, 10.0)
    report.run("judges", judges, context, 10.0)
    assert [row["name"] for row in report.rows] == ["before", "error"]
    assert report.failures == ["section breaks: ValueError: out of luck", "error: 2 , wanted <= 1"]
    assert "out of luck" in report.sections[0]["error"] and report.sections[1]["error"] is None
    assert report.table().splitlines()[0].startswith("FAIL error")
    assert "out of luck" in capsys.readouterr().out


def test_what_is_not_a_number_never_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from gpu.correctness import _judge
    from gpu.report import Report

    empty, nan = torch.tensor([1.0, -torch.inf]), torch.tensor([torch.nan, -torch.inf])
    for found, wanted, ok in ((empty, empty, True), (nan, empty, False), (empty.flip(0), empty, False)):
        report = Report()
        _judge(report, "case", (found,), (wanted,), 1e-3)
        assert report.rows[0]["ok"] is ok and bool(report.failures) is not ok
