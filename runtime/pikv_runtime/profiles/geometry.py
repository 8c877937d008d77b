"""Geometry: the shape of the model being priced. Page bytes, query bytes and weights follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from pikv_runtime.ledger.setup import Shape
from pikv_runtime.ledger.state import CODECS

PRICED = (
    "hidden_size", "experts_per_token", "moe_layers", "dense_parameters", "expert_parameters",
    "dense_number_bytes", "expert_number_bytes",
)  # fmt: skip
"""What a profile with hardware constants must know of a geometry beside its attention."""


@dataclass(frozen=True)
class Geometry:
    """Shape of a model's attention, gates and weights.

    The first seven fields say what a page is. The rest is what a profile with hardware constants needs; 0 where it is
    not known.
    """

    name: str
    layers: int
    experts: int
    query_heads: int
    kv_heads: int
    head_dim: int
    native_bytes: int
    """Bytes of one number in the model's own dtype (4: fp32, 2: bf16)."""
    source: str = ""
    """Where the numbers come from."""
    hidden_size: int = 0
    vocabulary: int = 0
    experts_per_token: int = 0
    moe_layers: int = 0
    """Layers whose feed-forward part is experts."""
    total_parameters: int = 0
    """As published."""
    active_parameters: int = 0
    """As published: those that one token uses."""
    dense_parameters: int = 0
    """Parameters that every token uses: attention, gates, shared experts, dense layers, output head."""
    expert_parameters: int = 0
    """Parameters of one routed expert of one layer."""
    dense_number_bytes: float = 0.0
    """Bytes of a dense parameter as served."""
    expert_number_bytes: float = 0.0
    """Bytes of an expert's parameter as served."""
    sliding_layers: int = 0
    """Layers that attend to the last `sliding_window` tokens only: their KV does not grow, and has no pages."""
    sliding_window: int = 0
    kv_lora_rank: int = 0
    """Latent attention (MLA): numbers of the latent that stands for K and V of a token; 0: K and V per KV head."""
    rope_dim: int = 0
    """Latent attention: rotary numbers stored beside the latent."""
    v_head_dim: int = 0
    """Numbers of a V head where it differs from a K head; 0: the same."""

    def __post_init__(self) -> None:
        if not 0 <= self.sliding_layers < self.layers:
            raise ValueError(
                f"geometry {self.name!r}: sliding_layers={self.sliding_layers}, allowed 0..{self.layers - 1}"
            )

    @property
    def latent(self) -> int:
        """Numbers stored per token and layer under latent attention; 0 without it."""
        return self.kv_lora_rank + self.rope_dim if self.kv_lora_rank else 0

    @property
    def v_dim(self) -> int:
        """Numbers of a V head."""
        return self.v_head_dim or self.head_dim

    @property
    def paged_layers(self) -> int:
        """Layers whose KV grows with the context."""
        return self.layers - self.sliding_layers

    @property
    def page_dims(self) -> tuple[int, int, int]:
        """Of a stored page: heads, numbers of a K head, numbers of a V head (0: V is the first part of K)."""
        return (1, self.latent, 0) if self.latent else (self.kv_heads, self.head_dim, self.v_dim)

    @property
    def read_dims(self) -> tuple[int, int]:
        """Numbers of a query and of its partial output, per query head, as decoding reads pages.

        Latent attention is read absorbed: queries and outputs live in the latent space (arXiv 2405.04434, 2.1).
        """
        return (self.latent, self.kv_lora_rank) if self.latent else (self.head_dim, self.v_dim)

    @property
    def prefill_dims(self) -> tuple[int, int]:
        """The same in prefill, where latents are expanded to heads."""
        return self.head_dim + self.rope_dim, self.v_dim

    def page_bytes(self, codec: str, page_tokens: int) -> int:
        """Bytes of one page of one layer, from the layout of the kernels' codecs, metadata included.

        Latent attention stores one latent per token and no V: the K side of the layout, with one head as wide as the
        latent.

        Raises:
            ValueError: an unknown codec, or `native_bytes` that is neither 4 nor 2.
        """
        import torch

        from pikv_kernels import payload_fields

        if self.native_bytes not in (2, 4):
            raise ValueError(f"geometry {self.name!r}: native_bytes={self.native_bytes}, allowed 4 (fp32) and 2 (bf16)")
        dtype = {4: torch.float32, 2: torch.bfloat16}[self.native_bytes]
        heads, width, v_dim = self.page_dims
        return sum(field.nbytes for field in payload_fields(codec, heads, page_tokens, width, dtype, v_dim))

    def centroid_bytes(self) -> int:
        """Bytes of a page's mean key in one layer, bf16."""
        return 2 * (self.latent or self.kv_heads * self.head_dim)

    def shape(self, page_tokens: int) -> Shape:
        """Bytes of one page of one layer by codec, from the real layout of the kernels' codecs."""
        sizes = tuple(self.page_bytes(codec, page_tokens) for codec in CODECS)
        return Shape(self.paged_layers, self.experts, sizes, centroid_bytes=self.centroid_bytes())

    def kv_token_bytes(self) -> int:
        """Native KV bytes of one token over all layers: the figure that is published for models."""
        return self.layers * self.native_bytes * (self.latent or self.kv_heads * (self.head_dim + self.v_dim))

    def query_bytes(self, number_bytes: int = 4) -> int:
        """Bytes for one query row, layer and remote rank: q out, partial output and lse back.

        `number_bytes`: of a number of q and output on the wire; the runtime sends the model's dtype (the embedded model
        is fp32), GPU profiles count bf16. The lse is fp32.
        """
        q, out = self.read_dims
        return self.query_heads * (number_bytes * (q + out) + 4)

    def weight_bytes(self) -> tuple[float, float]:
        """Bytes of the dense weights, and of all routed experts."""
        experts = self.moe_layers * self.experts * self.expert_parameters
        return self.dense_parameters * self.dense_number_bytes, experts * self.expert_number_bytes

    def token_flops(self) -> float:
        """Floating-point operations of one token, attention over its context apart: two per parameter used."""
        routed = self.moe_layers * self.experts_per_token * self.expert_parameters
        return 2.0 * (self.dense_parameters + routed)

    def check_priced(self) -> None:
        """Raise ValueError if the geometry lacks what hardware constants must know."""
        missing = [name for name in PRICED if not getattr(self, name) > 0]
        if missing:
            raise ValueError(f"geometry {self.name!r} lacks {', '.join(missing)}: hardware profiles cannot price it")
