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
from pikv_kernels.payload import CODECS, FieldSpec, PagePayload, check_codec, page_bytes, payload_fields
from pikv_kernels.pool import PagePool

__all__ = [
    "CODECS",
    "FieldSpec",
    "PagePayload",
    "PagePool",
    "check_codec",
    "codec_error",
    "decode",
    "encode",
    "merge_partials",
    "page_bytes",
    "page_mass",
    "paged_decode_attention",
    "paged_decode_partials",
    "partial_attention",
    "payload_fields",
    "reencode",
    "torch_paged_decode",
]
