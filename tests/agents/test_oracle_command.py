"""`pikv oracle` on a short workload."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pikv_agents import cli


def test_the_command_brackets_what_is_played(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "oracle.json"
    given = ["--families", "facts-poisson", "--pressure", "0.5", "--horizon-s", "60", "--quick", "--json", str(out)]
    assert cli.main(["oracle", *given]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert 0 < row["lower"] <= row["upper"] and row["width"] < 0.15
    assert 0 < row["free_bound"] < row["played"]
    assert "facts-poisson" in capsys.readouterr().out


def test_a_pressure_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["oracle", "--pressure", "0"]) == 2
    assert "pressure=" in capsys.readouterr().err
