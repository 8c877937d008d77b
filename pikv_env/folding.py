"""Folding: recorded traces of a small model, priced as if they came from a larger one.

One recorded layer stands for f = (layers whose KV grows) / (recorded layers) layers of the priced geometry, and one
recorded token for s = `token_scale` tokens, so one recorded iteration for s iterations. Page bytes and prices are
multiplied; the ledger's rules stay as they are. Experts stay those of the traces: they are the tags.

This is a what-if: attention, gates and codec errors remain the recorded model's. It is no evidence about the geometry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger.setup import Shape
from pikv_runtime.ledger.state import Price
from pikv_runtime.profiles import Geometry
from pikv_runtime.requests import ServiceClass

# Powers of (f, s) in every price, for what the ledger multiplies it with.
_POWERS: dict[Price, tuple[int, int]] = {
    Price.STEP: (0, 1),  # s iterations
    Price.PREFILL_TOKEN: (0, 1),  # s tokens; the price is of all layers
    Price.PREFILL_PAIR: (0, 2),  # s queries by s context tokens; of all layers
    Price.DECODE_TOKEN: (0, 1),
    Price.READ_NATIVE: (1, 2),  # f layers of s pages, read in s iterations
    Price.READ_BF16: (1, 2),
    Price.READ_INT8: (1, 2),
    Price.READ_INT4: (1, 2),
    Price.SELECT_PAGE: (1, 2),
    Price.ENCODE_PAGE: (1, 1),  # f layers of s pages, once
    Price.LINK_BYTE: (0, 0),  # a byte is a byte: page bytes and query bytes carry the factors
    Price.COLLECTIVE: (1, 1),  # two a layer and iteration
    Price.QUERY_BYTES: (1, 1),  # f layers, s query rows
    Price.DECISION: (0, 0),
    Price.HOST_BYTE: (0, 0),  # like a byte between ranks
}


@dataclass(frozen=True)
class Folding:
    """How recorded layers and tokens stand for those of a geometry."""

    geometry: Geometry
    layers: int
    """Recorded layers."""
    experts: int
    """Recorded experts per layer."""
    token_scale: int = 1

    def __post_init__(self) -> None:
        if self.layers < 1 or self.experts < 1 or self.token_scale < 1:
            raise ValueError(
                f"layers={self.layers}, experts={self.experts}, token_scale={self.token_scale}: each at least 1"
            )
        g = self.geometry
        if g.paged_layers < self.layers or g.experts < self.experts:
            raise ValueError(
                f"the traces were recorded with {self.layers} layers and {self.experts} experts; geometry {g.name!r} "
                f"has {g.paged_layers} layers with growing KV and {g.experts} experts: traces are folded onto as many "
                "or more"
            )

    @property
    def depth(self) -> float:
        """f: layers of the geometry that one recorded layer stands for."""
        return self.geometry.paged_layers / self.layers

    @property
    def what_if(self) -> bool:
        """Whether the priced model is another than the recorded one."""
        same = (self.geometry.layers, self.geometry.experts) == (self.layers, self.experts)
        return not same or self.token_scale != 1

    def shape(self, page_tokens: int) -> Shape:
        """The ledger's shape: recorded layers and experts, bytes of f · s pages, rounded to whole bytes."""
        one, factor = self.geometry.shape(page_tokens), self.depth * self.token_scale
        sizes = tuple(round(size * factor) for size in one.codec_bytes)
        return Shape(self.layers, self.experts, sizes, round(one.centroid_bytes * factor))

    def fold(self, prices: NDArray[np.float64]) -> NDArray[np.float64]:
        """Prices of the geometry, (len(Price),), as prices of recorded units: times f^a · s^b."""
        powers = np.array([_POWERS[price] for price in Price], dtype=np.float64)
        factors: NDArray[np.float64] = self.depth ** powers[:, 0] * float(self.token_scale) ** powers[:, 1]
        return prices * factors

    def service_class(self, one: ServiceClass) -> ServiceClass:
        """A class of service whose time per output token is of a recorded token: s times longer."""
        return replace(one, slo_tpot_s=one.slo_tpot_s * self.token_scale)

    def label(self) -> str:
        """What results should say of it."""
        if not self.what_if:
            return f"as recorded ({self.geometry.name})"
        return (
            f"what-if: traces of {self.layers} layers and {self.experts} experts priced as {self.geometry.name}, "
            f"1 recorded layer = {self.depth:g} layers, 1 recorded token = {self.token_scale} tokens; "
            "not evidence about that model"
        )
