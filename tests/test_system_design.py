"""The system design chapter: every module, command, field and link that it names exists."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from pikv_agents.cli import COMMANDS
from pikv_runtime.contract import GLOBAL_CONTROLS, GLOBAL_FEATURES, GROUP_CONTROLS, GROUP_FEATURES
from pikv_runtime.ledger.state import Price
from pikv_runtime.rankers import RANKERS
from pikv_runtime.routers import ROUTERS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CHAPTER = (DOCS / "system-design.md").read_text(encoding="utf-8")
NAMES = re.findall(r"`([^`\n]+)`", CHAPTER)
LINKS = re.findall(r"\]\(([^)\s]+)\)", CHAPTER)
FOLDERS = ("", "runtime/", "runtime/pikv_runtime/", "kernels/", "agents/")
PACKAGES = ("", "pikv_runtime.", "pikv_env.", "pikv_agents.")
CLASSES = {
    "RuntimeConfig": "pikv_runtime.config", "Geometry": "pikv_runtime.profiles", "Request": "pikv_runtime.requests",
    "CostBreakdown": "pikv_runtime.costs", "Engine": "pikv_runtime.engine",
}  # fmt: skip
COLUMNS = {c.name for part in (GROUP_FEATURES, GLOBAL_FEATURES, GROUP_CONTROLS, GLOBAL_CONTROLS) for c in part}
LISTED = COLUMNS | set(RANKERS.names()) | set(ROUTERS.names()) | {p.name.lower() for p in Price} | {"nbytes"}


def _symbol(dotted: str) -> bool:
    """Whether `dotted` is a module, or an attribute of one, in one of the packages."""
    head = dotted.partition(".")[0]
    if head in CLASSES:
        dotted = f"{CLASSES[head]}.{dotted}"
    parts = dotted.split(".")
    for package in PACKAGES:
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(package + ".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            if _has(found, parts[cut:]):
                return True
    return False


def _has(owner: object, names: list[str]) -> bool:
    for name in names:
        if is_dataclass(owner) and name in {f.name for f in fields(owner)}:
            return True
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return True


def exists(name: str) -> bool:
    if name.startswith("pikv "):
        return name.split()[1] in COMMANDS
    if "/" in name:
        return any((ROOT / folder / name).exists() for folder in FOLDERS)
    return name in LISTED or _symbol(name)


def test_it_names_enough_to_be_worth_checking() -> None:
    assert len(set(NAMES)) > 60 and sum(name.startswith("pikv ") for name in NAMES) >= 8


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_what_it_names_exists(name: str) -> None:
    assert exists(name), f"docs/system-design.md names {name!r}, which is no command, path, symbol or column"


@pytest.mark.parametrize("name", ["pikv fly", "ledger/nothing.py", "ledger.readset.nothing", "RuntimeConfig.nothing"])
def test_a_name_that_is_gone_would_be_seen(name: str) -> None:
    assert not exists(name)


def _anchors(page: Path) -> set[str]:
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    titles = [line.lstrip("#").strip().lower() for line in lines]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("link", sorted(set(LINKS)))
def test_its_links_lead_somewhere(link: str) -> None:
    if link.startswith("http"):
        return
    path, _, anchor = link.partition("#")
    page = DOCS / path if path else DOCS / "system-design.md"
    assert page.exists(), f"{link}: no such page"
    assert not anchor or anchor in _anchors(page), f"{link}: {page.name} has no such heading"
