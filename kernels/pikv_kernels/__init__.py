"""Floor 0 of PiKV: tensor functions on KV pages, without state. Triton loads only when a kernel runs."""

from pikv_kernels.attention import (
    page_mass,
    paged_decode_attention,
    paged_decode_partials,
    partial_attention,
    torch_paged_decode,
)
from pikv_kernels.codecs import codec_error, decode, encode, reencode
from pikv_kernels.merge import merge_partials
from pikv_kernels.pages import recode_pages, store_tokens
from pikv_kernels.payload import CODECS, FieldSpec, PagePayload, check_codec, page_bytes, payload_fields
from pikv_kernels.pool import PagePool
from pikv_kernels.scores import bound_scores, centroid_scores, key_summaries, page_utility
from pikv_kernels.selection import biased_gate, listed, read_set, victims

__all__ = [
    "CODECS",
    "FieldSpec",
    "PagePayload",
    "PagePool",
    "biased_gate",
    "bound_scores",
    "centroid_scores",
    "check_codec",
    "codec_error",
    "decode",
    "encode",
    "key_summaries",
    "listed",
    "merge_partials",
    "page_bytes",
    "page_mass",
    "page_utility",
    "paged_decode_attention",
    "paged_decode_partials",
    "partial_attention",
    "payload_fields",
    "read_set",
    "recode_pages",
    "reencode",
    "store_tokens",
    "torch_paged_decode",
    "victims",
]
