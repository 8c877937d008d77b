"""Configuration of the runtime: one frozen dataclass, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pikv_runtime.block_rules import make_block_rule
from pikv_runtime.shard_maps import make_shard_map

ROUTER_CODES = {"all": 0, "gate": 1, "centroid": 2}
"""Routers by the number that the ledger knows them by."""
COPYING = ("expert_home", "paper_xor", "rendezvous")
"""Shard maps under which an expert has a home."""


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    from pikv_runtime.registry import UnknownNameError

    if value not in allowed:
        raise UnknownNameError(name, value, list(allowed))


@dataclass(frozen=True)
class RuntimeConfig:
    """How the cache stores, reads and serves. The defaults are safe: exact reading over native pages."""

    page_tokens: int = 16
    """Token slots of a page."""
    layout: Literal["position"] = "position"
    """`position`: a page is a run of consecutive tokens, tagged with its majority expert."""
    router: str = "all"
    """Read-set router of sparse reading: a name in `pikv_runtime.routers` (`all` belongs to exact reading)."""
    codec: str = "native"
    """Top rung of the ladder: how a sealed page starts (`native` or `bf16`)."""
    ranker: str = "lru"
    """Order of eviction and demotion where no policy gives utility weights."""
    block_rule: str = "utility"
    """Order of cached blocks where no policy names one: a spec of `pikv_runtime.block_rules`, such as `s3fifo`."""
    latent: bool = True
    """Models with latent attention (MLA): pages hold the latent and the rotary key; False: K and V of every head."""
    shard_map: str = "expert_home"
    """Which rank stores a sealed page: a spec of `pikv_runtime.shard_maps`, such as `page_stripe`."""
    write: Literal["single", "copies"] = "single"
    """`copies`: a sealed page is kept on the homes of several experts that its tokens chose, as PiKV's paper has it."""
    copies: int = 2
    """How many, the most chosen first, under `write="copies"`; further copies give way to anything else."""
    cap_bytes: int | None = None
    """Hard cap on KV bytes of each rank; None: no cap."""
    host_bytes: int | None = None
    """Host memory of each rank for cached blocks that leave the device; None or 0: they are dropped."""
    read: Literal["exact", "sparse"] = "exact"
    """`exact` reads all resident pages; `sparse` reads the always-on set and the read set."""
    sink_pages: int = 1
    """Pages at the start of a request that are always read and never evicted."""
    window_pages: int = 2
    """Recent pages that are always read and never evicted, where no policy decides."""
    layer_groups: int = 4
    """Layer groups that control steers apart; clipped to the model's layers."""
    slots: int = 16
    """Most requests running at a time, over all ranks."""
    max_batch_tokens: int = 256
    """Most tokens in one iteration: decoding requests first, prompt chunks with the rest."""
    interval_s: float = 2.0
    """Span of model time between two decisions."""
    control_latency_s: float = 0.0
    """Time from a decision until its control comes into force: telemetry and decision have to travel."""
    observe_tokens: int = 32
    """A request's attention mass is observed once in so many of its decode steps."""
    observe: Literal["drawn", "first"] = "drawn"
    """Which of them: one drawn by hash, which no policy can wait for, or the first (for recording)."""
    audit_share: float = 0.25
    """Share of requests (by hash) whose fidelity is measured against an exact shadow."""
    share_lossy: bool = False
    """Whether blocks of lossy lineage may be shared."""
    blocks: int = 4096
    """Least block slots: metadata of so many blocks has room, on the device and in the host. Without a cap there are
    enough for all that is served."""

    def __post_init__(self) -> None:
        _choice("layout", self.layout, ("position",))
        _choice("read", self.read, ("exact", "sparse"))
        _choice("observe", self.observe, ("drawn", "first"))
        _choice("top-rung codec", self.codec, ("native", "bf16"))
        _choice("router", self.router, tuple(ROUTER_CODES))
        make_block_rule(self.block_rule)
        _choice("write", self.write, ("single", "copies"))
        if self.copies < 2:
            raise ValueError(f"copies={self.copies}: allowed from 2; for one copy of a page, write='single'")
        if make_shard_map(self.shard_map).kind not in COPYING and self.write == "copies":
            raise ValueError(
                f"write='copies' with shard_map={self.shard_map!r}: copies go to experts' homes; "
                f"allowed: {', '.join(COPYING)}"
            )
        if self.read == "sparse" and self.router == "all":
            # It ranks nothing: a fan-out below 1 would read the lowest pages, whatever they hold.
            allowed = ", ".join(repr(name) for name in ROUTER_CODES if name != "all")
            raise ValueError(f"read='sparse' with router='all': sparse reading needs a router that ranks: {allowed}")
        for name in ("page_tokens", "window_pages", "layer_groups", "slots", "max_batch_tokens", "observe_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.cap_bytes is not None and self.cap_bytes < 1:
            raise ValueError(f"cap_bytes={self.cap_bytes}: must be positive, or None for no cap")
        if self.host_bytes is not None and self.host_bytes < 0:
            raise ValueError(f"host_bytes={self.host_bytes}: must not be negative; 0 or None for no host tier")
        if not self.interval_s > 0:
            raise ValueError(f"interval_s={self.interval_s}: must be positive")
        if not 0 <= self.control_latency_s <= self.interval_s:
            raise ValueError(
                f"control_latency_s={self.control_latency_s}: allowed 0 to interval_s={self.interval_s}: later, a "
                "control would be overtaken by the next one"
            )
        if not 0 <= self.audit_share <= 1:
            raise ValueError(f"audit_share={self.audit_share}: allowed 0..1")
        if self.max_batch_tokens < self.slots:
            raise ValueError(f"max_batch_tokens={self.max_batch_tokens}: must be at least slots={self.slots}")
