"""Mooncake traces themselves: checked, cut to a window, or brought to larger blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pikv_env.workloads.converters.base import CONVERTERS, ConversionError, ConvertOptions
from pikv_env.workloads.mooncake import BLOCK_TOKENS, MooncakeError, MooncakeRecord, read_mooncake


def read(source: Path, options: ConvertOptions) -> Iterator[MooncakeRecord]:
    """Records of a trace in blocks of 512 tokens."""
    if options.block_tokens % BLOCK_TOKENS:
        raise ConversionError(f"block_tokens={options.block_tokens}: allowed are multiples of {BLOCK_TOKENS}")
    joined = Joined(options.block_tokens // BLOCK_TOKENS)
    try:
        records = read_mooncake(source, BLOCK_TOKENS)
    except MooncakeError as error:
        raise ConversionError(str(error)) from error
    for r in records:
        yield MooncakeRecord(r.timestamp_ms, r.input_length, r.output_length, joined(r.hash_ids))


class Joined:
    """Joins several blocks to one. Ids name whole prefixes, so the last of the joined blocks names them all."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def __call__(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Ids of the joined blocks, the last one possibly of fewer; equal where the first ids are."""
        if self.blocks == 1:
            return tuple(ids)
        ends = [min(end, len(ids)) - 1 for end in range(self.blocks, len(ids) + self.blocks, self.blocks)]
        # The same id ends a whole block here and a partial one there: they are different blocks.
        return tuple(ids[end] * self.blocks + (end + 1) % self.blocks for end in ends)


CONVERTERS.add("mooncake", read)
