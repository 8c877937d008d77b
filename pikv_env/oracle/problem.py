"""The fixed-timeline problem: what may become of every block of a run whose iterations are given.

A block (one position range, all layers) lives through *stages*: spans of iterations between two moments at which
something about it can change. In every stage each of its layers is in one of five states, and only moves down:
fresh (native, not yet sealed), top rung, int8, int4, gone. A visit that needs a block that is gone computes it anew.
docs/oracle.md states the mathematics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger.state import F4, F8, I1, I4, I8

STATES = ("fresh", "top", "int8", "int4", "gone")
FRESH, TOP, INT8_RUNG, INT4_RUNG, GONE = range(5)

USE = 1  # a visit is admitted that reads the block: gone means computed anew
SEAL = 2  # a fresh page is sealed at the stage's start
DEMOTE = 4  # its pages may go down the ladder at the stage's start
EVICT = 8  # its pages may be evicted at the stage's start
GAP = 16  # nobody reads it: it is cached
FORCED = 1  # of a read: the page is in the always-on set


@dataclass(frozen=True)
class Problem:
    """K iterations, G ranks, B blocks with L layers, S stages (those of a block side by side), R reads (those of a
    stage side by side). Seconds of delay in iteration k cost `rho[k]` of J, byte-seconds `memory`."""

    # --- iterations
    start_s: F8  # (K,)
    end_s: F8  # (K,)
    rho: F8  # (K,) J per second that iteration k takes longer
    fixed_s: F8  # (K,) of iteration k, whatever is decided, on all ranks
    base_s: F8  # (G, K) the same by rank
    cap: I8  # (G, K) bytes
    constant: float
    """J of what is outside of all iterations: waiting before, requests that are never served."""
    # --- prices
    memory: float
    """J per byte-second."""
    state_bytes: I8  # (5,)
    state_read_s: F8  # (5,) reading one page of one layer
    select_s: float
    encode_s: float
    """One rung down, one page of one layer."""
    move_s: float
    """A sealed page to its home rank."""
    # --- blocks
    first: I8  # (B + 1,) stages of block b: first[b]:first[b + 1]
    depth: I4  # (B,)
    chain: I4  # (B,) blocks of one number share a prefix
    home: I1  # (B, L) rank of the sealed page
    errors: F4  # (B, L, 5) codec error by state
    # --- stages
    begin: I4  # (S,) iterations [begin, end)
    end: I4
    t0_s: F8  # (S,)
    t1_s: F8
    flags: I1
    owner: I1  # rank of a fresh page
    visit: I4  # that is admitted, -1: none
    miss_s: F8  # (S,) seconds of computing the block at its `USE`
    bin: I4  # (S,) which stretch of decisions it begins in: reading is all or sparse for everybody
    reads_first: I8  # (S + 1,)
    grid_first: I8  # first iterations of the stretches; stretch n + 1 begins at grid_first[n]
    # --- reads: decode steps of a visit over a block, within a stage
    read_visit: I4  # (R,)
    read_begin: I4  # (R,) iterations
    read_end: I4
    read_kind: I1  # FORCED or 0
    # --- visits
    visit_content: I4  # (V,) row of `mass`, -1: none
    visit_weight: F8  # (V,) J per decode step, layer and unit of lost mass
    visit_decode: I4  # (V,) first decode iteration
    visit_step: I4  # (V,) number of that decode step
    visit_owner: I1  # (V,)
    visit_admitted: I4  # (V,)
    mass: F4  # (C, O, L, P) of the trace library
    observe_tokens: int
    page_bytes_floor: float
    """Share of byte-time over the cap that no decision can avoid: there the cap is what must be held."""

    @property
    def layers(self) -> int:
        """L."""
        return self.home.shape[1]

    @property
    def ranks(self) -> int:
        """G."""
        return self.base_s.shape[0]

    @property
    def stages(self) -> int:
        """S."""
        return len(self.begin)

    @property
    def bins(self) -> int:
        """Stretches in which reading is all or sparse."""
        return len(self.grid_first)


Paths = NDArray[np.int8]
"""(S, L) state of every stage and layer: a schedule."""
