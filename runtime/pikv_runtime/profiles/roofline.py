"""Prices of a geometry on given hardware: bytes over bandwidth, operations over throughput, links by their fits.

Roofline: Williams et al., CACM 52(4), 2009. `docs/profiles.md` has every formula and what it leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger.state import CODECS, Price
from pikv_runtime.profiles.geometry import Geometry
from pikv_runtime.profiles.hardware import ANSWER, QUESTION, Hardware, Link, find_link

WIRE_NUMBER_BYTES = 2  # queries, partial outputs and hidden states travel in bf16


def roofline_prices(
    hardware: Hardware,
    links: Sequence[Link],
    geometry: Geometry,
    ranks: int,
    page_tokens: int,
    rows: int,
    chunk_tokens: int,
) -> NDArray[np.float64]:
    """A row of the ledger, (len(Price),); arguments as of `Profile.prices`.

    Raises:
        ValueError: the geometry lacks parameters or does not fit into memory; no link for so many ranks.
    """
    geometry.check_priced()
    check_memory(hardware, geometry, ranks)
    model = _Model(hardware, links, geometry, ranks)
    step, decode_token = model.line(max(2, -(-rows // ranks)))
    p = np.zeros(len(Price))
    p[Price.STEP], p[Price.DECODE_TOKEN] = step, decode_token
    p[Price.PREFILL_TOKEN] = model.prefill_token_s(chunk_tokens)
    p[Price.PREFILL_PAIR] = model.prefill_pair_s()
    for number, codec in enumerate(CODECS):
        p[Price.READ_NATIVE + number] = read_page_s(hardware, geometry, codec, page_tokens)
    p[Price.SELECT_PAGE] = hardware.stream_s(geometry.centroid_bytes())
    p[Price.ENCODE_PAGE] = hardware.stream_s(2 * geometry.page_bytes("native", page_tokens))
    p[Price.QUERY_BYTES] = geometry.query_bytes(WIRE_NUMBER_BYTES)
    if ranks > 1:
        p[Price.COLLECTIVE], p[Price.LINK_BYTE] = query_link(links, geometry, ranks, rows)
    p[Price.DECISION] = hardware.decision_s
    p[Price.HOST_BYTE] = hardware.host_byte_s()
    return p


def check_memory(hardware: Hardware, geometry: Geometry, ranks: int) -> None:
    """Raise ValueError if dense weights (on every rank) and a share of the experts do not fit."""
    dense, experts = geometry.weight_bytes()
    room = hardware.memory_bytes * hardware.memory_share
    if dense + experts / ranks >= room:
        needed = int(experts // (room - dense)) + 1 if dense < room else None
        advice = f"at least {needed} are needed" if needed else "no number of them is enough"
        raise ValueError(
            f"geometry {geometry.name!r} has {(dense + experts) / 1e9:.0f} GB of weights and does not fit into "
            f"ranks={ranks} of {hardware.gpu} ({room / 1e9:.0f} GB usable each): {advice}"
        )


def read_page_s(hardware: Hardware, geometry: Geometry, codec: str, page_tokens: int) -> float:
    """One decoding query reads one page of one layer: memory or arithmetic, whichever takes longer.

    With grouped queries memory always does. Absorbed latent attention has 128 heads on one latent: arithmetic.
    """
    operations = 2.0 * geometry.query_heads * sum(geometry.read_dims) * page_tokens
    return max(hardware.stream_s(geometry.page_bytes(codec, page_tokens)), hardware.compute_s(operations))


def query_link(links: Sequence[Link], geometry: Geometry, ranks: int, rows: int) -> tuple[float, float]:
    """Start of one of the two collectives of a layer, and seconds per byte, for the messages of `rows` queries."""
    size = geometry.query_bytes(WIRE_NUMBER_BYTES) * (ranks - 1) * max(1.0, rows / ranks) / 2
    question, answer = (find_link(links, kind, ranks, size) for kind in (QUESTION, ANSWER))
    return (question.start_s + answer.start_s) / 2, (question.byte_s + answer.byte_s) / 2


def touched_experts(geometry: Geometry, tokens: float) -> float:
    """Expected distinct experts of a layer that `tokens` tokens choose, were all experts equally popular."""
    share = geometry.experts_per_token / geometry.experts
    return geometry.experts * (1.0 - (1.0 - share) ** tokens)


class _Model:
    """Everything of an iteration but pages: weights, arithmetic, the exchange of the experts, launches."""

    def __init__(self, hardware: Hardware, links: Sequence[Link], geometry: Geometry, ranks: int) -> None:
        self.hardware, self.links, self.geometry, self.ranks = hardware, links, geometry, ranks
        self.token_s = hardware.compute_s(geometry.token_flops(), geometry.expert_number_bytes)

    def weights_s(self, tokens: float) -> float:
        """Streaming the weights that `tokens` tokens over all ranks use: dense ones, this rank's share of experts."""
        g = self.geometry
        dense, experts = g.weight_bytes()
        return self.hardware.stream_s(dense + experts / self.ranks * touched_experts(g, tokens) / g.experts)

    def exchange_s(self, tokens: float) -> float:
        """Sending `tokens` tokens of a rank to their experts and back, all layers."""
        if self.ranks == 1:
            return 0.0
        size = tokens * self.remote_copies() * self.geometry.hidden_size * WIRE_NUMBER_BYTES
        there, back = (find_link(self.links, kind, self.ranks, size) for kind in (QUESTION, ANSWER))
        return self.geometry.moe_layers * (there.seconds(size) + back.seconds(size))

    def remote_copies(self) -> float:
        """Copies of a token's hidden state that leave its rank: one per chosen expert elsewhere."""
        return self.geometry.experts_per_token * (self.ranks - 1) / self.ranks

    def launches_s(self) -> float:
        """Fixed parts of all kernels of an iteration."""
        return self.hardware.launch_s * self.hardware.launches_per_layer * self.geometry.layers

    def decode_s(self, rows: int) -> float:
        """An iteration in which every rank decodes `rows` requests, without reading pages."""
        g = self.geometry
        window = g.sliding_layers * g.sliding_window * g.kv_token_bytes() / g.layers
        per_row = self.token_s + self.hardware.stream_s(window)
        return self.launches_s() + self.weights_s(rows * self.ranks) + rows * per_row + self.exchange_s(rows)

    def line(self, most: int) -> tuple[float, float]:
        """`decode_s` for 1..`most` rows as the line of least relative squared error: (seconds, seconds per row)."""
        rows = np.arange(1, most + 1)
        seconds = np.array([self.decode_s(int(n)) for n in rows])
        slope, start = np.polyfit(rows, seconds, 1, w=1.0 / seconds)
        return float(start), float(slope)

    def prefill_token_s(self, chunk: int) -> float:
        """A prompt token beyond what `line` charges: arithmetic, or (in small chunks) the experts that it wakes."""
        g, h = self.geometry, self.hardware
        window_pairs = g.sliding_layers * g.sliding_window
        compute = self.token_s + h.compute_s(window_pairs * 2.0 * g.query_heads * sum(g.prefill_dims))
        wakes = (self.weights_s(chunk) - self.weights_s(1)) / chunk
        exchange = (self.exchange_s(chunk) - self.exchange_s(0)) / chunk
        return max(compute, wakes) + max(0.0, exchange)

    def prefill_pair_s(self) -> float:
        """Attention of one (query, context) pair, all layers whose context grows."""
        g = self.geometry
        return self.hardware.compute_s(g.paged_layers * 2.0 * g.query_heads * sum(g.prefill_dims))
