"""What one decode step costs on 1 to 1024 GPUs, by where the cache lives: formulas over a profile and a geometry.

Per layer, `rows` queries of a rank go to R other ranks and come back as partial outputs with their log-sum-exp:

    T = a_question + a_answer + rows · R · (q_bytes · b_question + o_bytes · b_answer)

with starts a and seconds per byte b of the links; then every rank reads its share of the context. Nothing overlaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pikv_runtime.ledger.state import Price
from pikv_runtime.profiles import Geometry, Profile, find_link
from pikv_runtime.profiles.hardware import ANSWER, QUESTION
from pikv_runtime.profiles.roofline import WIRE_NUMBER_BYTES, read_page_s
from pikv_runtime.registry import UnknownNameError

METHODS: dict[str, str] = {
    "local": "the cache lives with its request: data-parallel attention, nothing on the wire",
    "sharded-exact": "pages live with their expert, every query asks all ranks that hold pages",
    "sharded-routed": "pages live with their expert, a query asks the owners of its read set only: not exact",
    "striped": "context-parallel (DCP): every request's tokens are dealt to all ranks in turn",
    "striped-node": "the same within each node, requests spread over nodes",
}
EXACT = {"local", "sharded-exact", "striped", "striped-node"}


@dataclass(frozen=True)
class Load:
    """What is decoded: `requests` of `context` tokens each, over all ranks."""

    requests: int
    context: int

    def rows(self, ranks: int) -> int:
        """Requests of the rank that owns most."""
        return math.ceil(self.requests / ranks)


@dataclass(frozen=True)
class Step:
    """Cost of one decode step."""

    attention_s: float
    """Reading the context, slowest rank."""
    link_s: float
    """Questions and answers, all layers."""
    other_s: float
    """Weights, arithmetic, exchange of the experts: the same for all methods."""
    wire_bytes: float
    """Bytes of questions and answers that leave one rank, all layers."""
    read_share: float
    """Share of the context that a query reads."""
    fits: bool
    """Whether weights and KV fit into memory."""
    extrapolated: bool
    """Whether a link beyond what was measured is in it."""

    @property
    def step_s(self) -> float:
        """All of it."""
        return self.attention_s + self.link_s + self.other_s


def decode_step(
    method: str, profile: Profile, geometry: Geometry, ranks: int, load: Load, *, tags: int, skew: float = 1.0
) -> Step:
    """One decode step of `load` on `ranks` GPUs.

    Args:
        method: one of `METHODS`.
        profile: hardware constants with links.
        geometry: the model; its experts bound how many ranks hold pages where pages live with their expert.
        ranks: GPUs.
        load: requests and their context.
        tags: experts in a query's read set, for `sharded-routed`.
        skew: load of the fullest shard over the mean one, for pages that live with their expert.

    Raises:
        UnknownNameError: no such method.
        ValueError: weights that do not fit, or more ranks than the profile covers.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, list(METHODS))
    rows = load.rows(ranks)
    prices = profile.prices(geometry, ranks=ranks, rows=rows * ranks)
    other = float(prices[Price.STEP] + rows * prices[Price.DECODE_TOKEN])
    holders, group, share = _placement(method, profile, geometry, ranks, tags)
    if method == "local":
        tokens = float(rows * load.context)
    elif method == "striped-node":
        tokens = load.rows(math.ceil(ranks / group)) * load.context / group
    else:
        uneven = skew if method.startswith("sharded") and ranks > 1 else 1.0
        tokens = load.requests * load.context / holders * uneven
    link_s, wire, beyond = _exchange(method, profile, geometry, group, ranks, rows, holders, share)
    hardware = profile.hardware
    assert hardware is not None
    page_s = read_page_s(hardware, geometry, "native", 16)
    attention = tokens * share * geometry.paged_layers * page_s / 16
    dense, experts = geometry.weight_bytes()
    kv_bytes = tokens * geometry.kv_token_bytes() * geometry.paged_layers / geometry.layers
    room = hardware.memory_bytes * hardware.memory_share
    fits = dense + experts / ranks + kv_bytes <= room
    return Step(attention, link_s, other, wire, share, fits, beyond)


def _placement(method: str, profile: Profile, geometry: Geometry, ranks: int, tags: int) -> tuple[int, int, float]:
    """Ranks that hold pages of a request, ranks that exchange, and the share of the context that is read."""
    assert profile.hardware is not None
    if method == "striped-node":
        group = min(ranks, profile.hardware.ranks_per_node)
        return group, group, 1.0
    if not method.startswith("sharded"):
        return ranks, ranks, 1.0
    holders = min(ranks, geometry.experts)  # an expert's pages have one home
    share = 1.0 if method == "sharded-exact" else 1.0 - (1.0 - 1.0 / holders) ** tags
    return holders, ranks, share


def _exchange(
    method: str, profile: Profile, geometry: Geometry, group: int, ranks: int, rows: int, holders: int, share: float
) -> tuple[float, float, bool]:
    """Seconds and bytes of a step's questions and answers, and whether a link was extrapolated."""
    if method == "local" or group == 1:
        return 0.0, 0.0, False
    remote = holders * share * (1.0 - 1.0 / group)
    q, out = geometry.read_dims
    q_bytes = rows * remote * geometry.query_heads * WIRE_NUMBER_BYTES * q
    o_bytes = rows * remote * geometry.query_heads * (WIRE_NUMBER_BYTES * out + 4)
    gathers = ("all_gather", "dispatch") if method.startswith("striped") else QUESTION
    question = find_link(profile.links, gathers, group, q_bytes)
    answer = find_link(profile.links, ANSWER, group, o_bytes)
    seconds = question.seconds(q_bytes) + answer.seconds(o_bytes)
    layers = geometry.paged_layers
    return layers * seconds, layers * (q_bytes + o_bytes), question.extrapolated or answer.extrapolated
