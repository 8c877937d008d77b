"""Profiles (what one machine charges) and geometries (the shape of the model being priced).

A profile is a small JSON with its source, date and fit error: measured (`pikv calibrate` writes one for the machine it
runs on), or hardware constants with fitted links (`python -m pikv_env.netperf`), which price any geometry.
"""

from __future__ import annotations

import json
from pathlib import Path

from pikv_runtime.profiles.geometry import Geometry
from pikv_runtime.profiles.hardware import Hardware, Link, find_link
from pikv_runtime.profiles.profile import Profile
from pikv_runtime.registry import UnknownNameError

__all__ = [
    "FOLDER",
    "Geometry",
    "Hardware",
    "Link",
    "Profile",
    "find_link",
    "geometry_names",
    "load_geometry",
    "load_profile",
    "profile_names",
]

FOLDER = Path(__file__).parent


def _names(kind: str) -> list[str]:
    return sorted(path.stem for path in (FOLDER / kind).glob("*.json"))


def profile_names() -> list[str]:
    """Profiles that ship with the project."""
    return _names("machines")


def geometry_names() -> list[str]:
    """Geometries that ship with the project."""
    return _names("geometries")


def _load(kind: str, name: str | Path) -> dict:
    path = Path(name) if str(name).endswith(".json") else FOLDER / kind / f"{name}.json"
    if not path.exists():
        what = {"machines": "profile", "geometries": "geometry"}[kind]
        raise UnknownNameError(what, str(name), _names(kind))
    return json.loads(path.read_text(encoding="utf-8"))


def load_profile(name: str | Path = "cpu-gloo") -> Profile:
    """A profile by name, or from a JSON file."""
    given = _load("machines", name)
    if given.get("hardware") is not None:
        given["hardware"] = Hardware(**given["hardware"])
    given["links"] = tuple(Link(**link) for link in given.get("links", ()))
    return Profile(**given)


def load_geometry(name: str | Path = "embedded") -> Geometry:
    """A geometry by name, or from a JSON file."""
    return Geometry(**_load("geometries", name))
