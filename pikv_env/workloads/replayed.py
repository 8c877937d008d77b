"""The sharing rule `trace`: times, lengths and shared blocks of a trace in the Mooncake line format."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.hashing import mix
from pikv_env.workloads.draw import Drawn, Episode, Ints
from pikv_env.workloads.mooncake import MooncakeRecord
from pikv_env.workloads.replay import Trace
from pikv_env.workloads.trace_workload import nearest_rows, page_ids


class Replayed:
    """A stretch of a trace, stretched in time to the asked rate; the text is notional, see `sharing.py`.

    A request gets the content whose prompt is nearest to its own, scaled; pages beyond its own prompt are unshared.
    A trace shorter than the episode starts anew, and shares nothing with the time before.
    """

    def probe(self, episode: Episode) -> Ints:
        """Library rows of all requests of the trace."""
        trace, library = _trace(episode), episode.library
        rows = np.concatenate([library.rows_of(kind) for kind in episode.family.kinds])
        wanted = _table(trace.records()).lengths / trace.token_scale
        return rows[nearest_rows(episode.rng(3), library.prompt_tokens[rows], wanted)]

    def draw(self, episode: Episode, rate_per_s: float) -> Drawn:
        """The requests of the episode."""
        trace, library = _trace(episode), episode.library
        arrivals = trace.draw(episode.rng(1), rate_per_s, episode.horizon_s)
        rows, own = self.probe(episode)[arrivals.record], episode.requests(len(arrivals.times))
        told = _table(trace.records())
        wanted = told.lengths[arrivals.record] / trace.token_scale
        ids = page_ids(
            told.hash_ids[arrivals.record],
            told.blocks[arrivals.record],
            library.chain.shape[1],
            np.minimum(wanted, library.prompt_tokens[rows]).astype(np.int64) // library.page_tokens,
            library.page_tokens * trace.token_scale / trace.block_tokens,
            mix(episode.key, 15, arrivals.lap),
            own,
        )
        return Drawn(arrivals.times, rows, own, ids)


class _Table(NamedTuple):
    """Records as arrays: prompt lengths (N,), numbers of blocks (N,), their ids, then 0, (N, B)."""

    lengths: NDArray[np.int64]
    blocks: NDArray[np.int64]
    hash_ids: NDArray[np.int64]


@lru_cache(maxsize=4)
def _table(records: tuple[MooncakeRecord, ...]) -> _Table:
    blocks = np.array([len(r.hash_ids) for r in records])
    ids = np.zeros((len(records), max(int(blocks.max()), 1)), np.int64)
    ids[np.arange(ids.shape[1]) < blocks[:, None]] = [i for r in records for i in r.hash_ids]
    return _Table(np.array([r.input_length for r in records]), blocks, ids)


def _trace(episode: Episode) -> Trace:
    trace = episode.family.arrivals
    assert isinstance(trace, Trace), "checked by Family"
    return trace
