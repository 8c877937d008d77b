"""The registry of workload families."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pikv_env.workloads import (
    FAMILIES,
    Family,
    Phase,
    Popularity,
    families_of,
)
from pikv_env.workloads.content import KINDS
from pikv_runtime.registry import UnknownNameError


def test_families_and_splits() -> None:
    assert len(FAMILIES.names()) >= 10
    required = {
        "train": {"facts-poisson", "code-bursty", "prose-diurnal", "copy-onoff"},
        "validation": {"mixed-bursty"},
        "test": {"dialogue-sessions", "needle-onoff", "regime-shift"},
    }
    for split, names in required.items():
        assert names <= set(families_of(split))  # type: ignore[arg-type]
    seen = {kind for name in families_of("train") for kind in FAMILIES[name].kinds}
    for name in families_of("test"):
        assert set(FAMILIES[name].kinds) - seen, f"{name} has no content of its own"
    with pytest.raises(UnknownNameError, match="split"):
        families_of("tset")  # type: ignore[arg-type]
    for name in FAMILIES:
        family = FAMILIES[name]
        assert set(family.kinds) <= set(KINDS) and family.description and family.source and family.licence


def test_the_documentation_lists_every_family() -> None:
    text = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text()
    for name in FAMILIES:
        assert f"| `{name}` | {FAMILIES[name].split} |" in text


@pytest.mark.parametrize(
    "change",
    [
        {"split": "dev"},
        {"sharing": "all"},
        {"sharing": "session"},
        {"phases": ()},
        {"batch_share": 1.5},
    ],
)
def test_families_refuse_bad_fields(change: dict[str, object]) -> None:
    good = FAMILIES["facts-poisson"]
    with pytest.raises(ValueError, match=r"allowed|needs|go together"):
        dataclasses.replace(good, **change)  # type: ignore[arg-type]
    assert isinstance(good, Family)


def test_parts_of_families_refuse_bad_fields() -> None:
    with pytest.raises(ValueError, match="phase"):
        Phase({})
    with pytest.raises(ValueError, match="instances=0"):
        Popularity(instances=0)
