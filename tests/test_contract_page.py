"""The page about the contract says what was measured: its tables are those of `benchmarks/contract-evidence.json`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
EVIDENCE = json.loads((ROOT / "benchmarks" / "contract-evidence.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", ["control_table", "feature_table"])
def test_the_pages_table_is_the_files(table: str) -> None:
    spec = importlib.util.spec_from_file_location("contract_tables", ROOT / "benchmarks" / "contract_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = getattr(module, table)(EVIDENCE)
    assert len(rows) > 20
    assert [row for row in rows if row not in PAGE] == []


def test_what_the_page_says_is_redundant_is_redundant() -> None:
    explained = {row["feature"]: row["explained"] for row in EVIDENCE["features"]}
    assert all(explained[name] > 0.9 for name in ("free_share", "int8_share", "int4_share", "mass_share"))
    for cell in EVIDENCE["cells"]:  # a ratio of 1 is the flag's "no"
        for end in ("-1", "1"):
            flag, ratio = (cell["J"][f"{name}={end}"] for name in ("demote_on_pressure", "r_pressure"))
            assert flag == pytest.approx(ratio, rel=1e-3)
