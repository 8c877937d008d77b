"""The tutorial of the documentation, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pikv_env.workloads import FAMILIES
from pikv_env.workloads.mooncake import MooncakeRecord, write_records

PAGE = Path(__file__).parents[2] / "docs" / "workloads.md"


def test_ten_lines_make_a_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.read_text().split("## Your own workload in ten lines")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    shared = tuple(range(4))
    records = [MooncakeRecord(500.0 * i, 512 * 10, 400, (*shared, *range(6 * i + 9, 6 * i + 15))) for i in range(900)]
    write_records(tmp_path / "tuesday.jsonl.gz", records)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    try:
        exec(code.replace("pressure=2.0", "pressure=2.0, horizon_s=60.0, workloads=1"), names)
        requests = names["env"].unwrapped.batch.prepared(0).workload.requests  # type: ignore[attr-defined]
    finally:
        FAMILIES._entries.pop("mine", None)
    assert names["info"] and np.isfinite(names["reward"])  # type: ignore[call-overload]
    first = {tuple(r.hash_ids[: 4 * 512 // 8 // 16].tolist()) for r in requests}
    assert len(requests) > 20 and len(first) <= 2, (
        "all share the trace's first four blocks; where it starts anew, others"
    )
    assert len({int(r.hash_ids[16]) for r in requests}) == len(requests), "and nothing behind them"
