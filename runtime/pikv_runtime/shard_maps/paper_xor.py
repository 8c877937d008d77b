"""`paper_xor`: the PiKV paper's hash of position and expert (arXiv 2508.06526)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pikv_runtime.shard_maps.base import STAY, Homes, ShardMap


@dataclass(frozen=True)
class PaperXor(ShardMap):
    """The paper stores token t of expert e in shard (t mod N_tok) XOR (e mod N_exp), each shard on one GPU, and defines
    neither modulus nor which GPU. Read with pages for tokens and the shard's number modulo G for the GPU, all moduli
    that are powers of two and at least G give (p mod G) XOR (e mod G), which is what this map does.

    The hash scatters what an expert's tag would bring together: an expert's consecutive pages never share a rank.
    """

    kind: ClassVar[str] = "paper_xor"

    def homes(self, ranks: int, experts: int, layer_groups: int) -> Homes:
        """See `ShardMap.homes`."""
        if ranks & (ranks - 1):
            raise ValueError(f"shard_map='paper_xor' with ranks={ranks}: allowed are powers of two (1, 2, 4, 8, ...)")
        hashed = np.arange(ranks)[:, None] ^ (np.arange(experts) % ranks)[None]
        table = np.full((ranks, experts + 1, layer_groups), STAY, np.int8)
        table[:, :-1] = hashed[..., None]
        return table
