"""Profile: what one machine charges, measured as a flat row or computed from hardware constants."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger.state import Price
from pikv_runtime.profiles.geometry import Geometry
from pikv_runtime.profiles.hardware import Hardware, Link
from pikv_runtime.profiles.roofline import roofline_prices


@dataclass(frozen=True)
class Profile:
    """Seconds per unit (see `Price`) on one machine.

    Either measured for one geometry (`prices_s`), or hardware constants and links that price any geometry.
    """

    name: str
    geometry: str
    """The measured geometry; empty where hardware constants price any."""
    source: str
    date: str
    fit_error: float
    """Median absolute relative error on what was not fitted: iteration times, or times of collectives."""
    prices_s: dict[str, float] = field(default_factory=dict)
    hardware: Hardware | None = None
    links: tuple[Link, ...] = ()
    extrapolated: str = ""
    """What of it nobody measured; empty: nothing."""

    def __post_init__(self) -> None:
        if self.hardware is not None and not self.prices_s:
            return
        expected = {p.name.lower() for p in Price}
        if set(self.prices_s) != expected:
            wrong = sorted(set(self.prices_s) ^ expected)
            raise ValueError(f"profile {self.name!r}: prices missing or unknown: {', '.join(wrong)}")
        bad = [k for k, v in self.prices_s.items() if not (np.isfinite(v) and v >= 0)]
        if bad:
            raise ValueError(f"profile {self.name!r}: prices must be finite and not negative: {', '.join(bad)}")

    def prices(
        self,
        geometry: Geometry | None = None,
        *,
        ranks: int = 1,
        page_tokens: int = 16,
        rows: int = 16,
        chunk_tokens: int = 256,
    ) -> NDArray[np.float64]:
        """The prices as a row of the ledger, (len(Price),).

        Args:
            geometry: the priced model; None: whatever was measured.
            ranks: GPUs; each owns requests, experts are sharded over all of them.
            page_tokens: token slots of a page.
            rows: most decoding requests of an iteration, over all ranks.
            chunk_tokens: most tokens of an iteration.

        Raises:
            ValueError: a measured profile has no price for another geometry; a geometry that lacks what hardware
                constants need, or does not fit into the memory of `ranks` GPUs; more ranks than the profile covers.
        """
        if self.hardware is None:
            if geometry is not None and geometry.name != self.geometry:
                raise ValueError(
                    f"profile {self.name!r} was measured with geometry {self.geometry!r} and has no prices for "
                    f"{geometry.name!r}: measure it (pikv calibrate --model), or take a profile of hardware constants, "
                    "such as 'h100-nvlink8'"
                )
            return np.array([self.prices_s[p.name.lower()] for p in Price])
        if geometry is None:
            raise ValueError(f"profile {self.name!r} prices a geometry: say which")
        if ranks > self.hardware.most_ranks:
            raise ValueError(f"profile {self.name!r} covers at most {self.hardware.most_ranks} ranks, not {ranks}")
        return roofline_prices(self.hardware, self.links, geometry, ranks, page_tokens, rows, chunk_tokens)
