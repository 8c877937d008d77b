"""What a forward pass is asked and what it answers: plain numpy, known to engine and model runner."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.config import ROUTER_CODES
from pikv_runtime.contract import GlobalControl, GroupControl
from pikv_runtime.ledger.state import Ledger

I1 = NDArray[np.int8]
I4 = NDArray[np.int32]
F4 = NDArray[np.float32]
ROUTER_NAMES = {code: name for name, code in ROUTER_CODES.items()}


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one request that one iteration computes."""

    slot: int
    """Slot of the request in the ledger."""
    owner: int
    """Rank that computes it."""
    start: int
    """Position of its first token: how many tokens the cache holds already."""
    token_ids: I4 = field(repr=False)
    """(n,) token ids; on ranks other than the owner only their number matters."""
    decode: bool
    """One token of a request that has left prefill: subject to sparse reading."""
    observe: bool = False
    """Whether attention mass and router scores are wanted (decode only)."""
    audited: bool = False
    """Whether exact keys are kept beside the cache and observed mass is measured against them."""

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True)
class CacheView:
    """The ledger's lane 0 as a forward pass reads it: live arrays, never written here."""

    page_block: I4
    """(R, P) block slot of page p of slot r, -1 none."""
    page_live: I1
    """(R, P, L) 1 where the slot may read the page."""
    page_ghost: I1
    """(R, P, L) 1 where the page is evicted and its centroid kept."""
    block_codec: I1
    """(B, L) ladder index, -1 not resident."""
    block_rank: I1
    """(B, L)"""
    block_tag: I1
    """(B, L) expert id, -1 untagged."""
    window_pages: int
    """Full pages before the open page that every query reads."""
    sink_pages: int
    """First pages that every query reads."""
    fan_out: float = 1.0
    """Share of a request's other resident pages that a sparse query reads."""
    routing_bias: F4 | None = None
    """(E, L) added to normalised router scores; None: no bias."""
    sparse: bool = False
    """Sparse reading of decoding requests."""
    router: str = "all"
    """Name in `pikv_runtime.routers`."""
    page_rank: I1 | None = None
    """(R, P, L) the one rank on which slot r reads page p; None: every page is read on `block_rank`."""

    @staticmethod
    def of(ledger: Ledger) -> CacheView:
        """View lane 0 of a ledger under the control in force."""
        bias = ledger.control_groups[0, :, GroupControl.ROUTING_BIAS]
        by_layer = bias.reshape(ledger.experts, ledger.layer_groups)[:, ledger.layer_group.astype(np.int64)]
        return CacheView(
            page_block=ledger.page_block[0],
            page_live=ledger.page_live[0].transpose(0, 2, 1),
            page_ghost=ledger.page_ghost[0].transpose(0, 2, 1),
            block_codec=ledger.block_codec[0],
            block_rank=ledger.block_rank[0],
            block_tag=ledger.block_tag[0],
            window_pages=int(ledger.control_globals[0, GlobalControl.WINDOW] + 0.5),
            sink_pages=ledger.sink_pages,
            fan_out=float(ledger.control_globals[0, GlobalControl.FAN_OUT]),
            routing_bias=np.ascontiguousarray(by_layer, np.float32),
            sparse=bool(ledger.sparse),
            router=ROUTER_NAMES[ledger.router],
            page_rank=ledger.page_rank[0].transpose(0, 2, 1),
        )


@dataclass(frozen=True)
class Filled:
    """A page range that the forward pass filled: what late binding found out about it."""

    slot: int
    page: int
    tags: I1
    """(L,) majority of the page's tokens' top experts."""
    errors: F4
    """(L, K) relative error of each codec, measured on the native page."""
    also: I1 | None = None
    """(L, copies - 1) further experts that the page's tokens chose, most chosen first, -1 none."""


@dataclass(frozen=True)
class Observation:
    """Attention of one decoding request at one step."""

    slot: int
    mass: F4
    """(L, P) share of each page, averaged over heads. Audited: of exact attention over everything ever
    written; others: of what was read, zeros elsewhere."""
    score: F4
    """(L, P) router scores of all full pages, ghosts included; as read sets were chosen by (in exact reading,
    by centroid where the router is `all`)."""
    gate: F4
    """(L, E) gate distribution predicted before attention."""


@dataclass(frozen=True)
class ForwardResult:
    """What one iteration found out; the same on every rank."""

    next_tokens: dict[int, int]
    """Greedy next token by slot (of prefill segments too)."""
    filled: list[Filled]
    observations: list[Observation]
