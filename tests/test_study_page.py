"""The study's page says what the study measured: its tables are those of `benchmarks/study.json`."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
STUDY = json.loads((ROOT / "benchmarks" / "study.json").read_text(encoding="utf-8"))


def _tables():
    spec = importlib.util.spec_from_file_location("study_tables", ROOT / "benchmarks" / "study_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TABLES


@pytest.mark.parametrize("name", list(_tables()))
def test_the_pages_table_is_the_files(name: str) -> None:
    rows = _tables()[name](STUDY)
    assert len(rows) >= 4
    missing = [row for row in rows if row not in PAGE]
    assert not missing, f"docs/study.md lacks rows of {name!r}: python benchmarks/study_tables.py prints them"


def test_every_part_names_where_it_comes_from() -> None:
    for part in ("effects", "controls", "informed", "pressure", "placement", "lookup", "lineage"):
        meta = STUDY[part]["meta"]
        assert meta["command"] == f"python benchmarks/study.py --parts {part}"
        assert meta["commit"] and meta["machine"] and meta["date"]


def test_its_figures_are_there() -> None:
    figures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE)
    assert len(figures) >= 6
    assert all((ROOT / "docs" / figure).exists() for figure in figures)
