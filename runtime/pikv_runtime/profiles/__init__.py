"""Profiles (what one machine charges) and geometries (the shape of the model being priced).

A profile is a small JSON with its source, date and fit error; `pikv calibrate` writes one for the machine it runs on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger.setup import Shape
from pikv_runtime.ledger.state import CODECS, Price
from pikv_runtime.registry import UnknownNameError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Geometry:
    """Shape of a model's attention and gates."""

    name: str
    layers: int
    experts: int
    query_heads: int
    kv_heads: int
    head_dim: int
    native_bytes: int
    """Bytes of one number in the model's own dtype (4: fp32, 2: bf16)."""

    def shape(self, page_tokens: int) -> Shape:
        """Bytes of one page of one layer by codec, from the real layout of the kernels' codecs."""
        import torch

        from pikv_kernels import page_bytes

        dtype = {4: torch.float32, 2: torch.bfloat16}[self.native_bytes]
        sizes = tuple(page_bytes(c, self.kv_heads, page_tokens, self.head_dim, dtype) for c in CODECS)
        return Shape(self.layers, self.experts, sizes, centroid_bytes=2 * self.kv_heads * self.head_dim)

    def query_bytes(self) -> int:
        """Bytes for one query row, layer and remote rank: q out, partial output and lse back, fp32 on the wire."""
        return self.query_heads * (4 * self.head_dim + 4 * self.head_dim + 4)


@dataclass(frozen=True)
class Profile:
    """Seconds per unit (see `Price`) of one machine for one geometry."""

    name: str
    geometry: str
    source: str
    date: str
    fit_error: float
    """Median absolute relative error of the fitted iteration times."""
    prices_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = {p.name.lower() for p in Price}
        if set(self.prices_s) != expected:
            wrong = sorted(set(self.prices_s) ^ expected)
            raise ValueError(f"profile {self.name!r}: prices missing or unknown: {', '.join(wrong)}")
        bad = [k for k, v in self.prices_s.items() if not (np.isfinite(v) and v >= 0)]
        if bad:
            raise ValueError(f"profile {self.name!r}: prices must be finite and not negative: {', '.join(bad)}")

    def prices(self) -> NDArray[np.float64]:
        """The prices as a row of the ledger, (len(Price),)."""
        return np.array([self.prices_s[p.name.lower()] for p in Price])


def _load(kind: str, name: str | Path) -> dict:
    path = Path(name) if str(name).endswith(".json") else FOLDER / kind / f"{name}.json"
    if not path.exists():
        what = {"machines": "profile", "geometries": "geometry"}[kind]
        raise UnknownNameError(what, str(name), sorted(p.stem for p in (FOLDER / kind).glob("*.json")))
    return json.loads(path.read_text())


def load_profile(name: str | Path = "cpu-gloo") -> Profile:
    """A profile by name, or from a JSON file."""
    return Profile(**_load("machines", name))


def load_geometry(name: str | Path = "embedded") -> Geometry:
    """A geometry by name, or from a JSON file."""
    return Geometry(**_load("geometries", name))
