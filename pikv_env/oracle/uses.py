"""From a timeline to blocks: which visits could have shared which blocks, and when each of them holds, leaves in the
always-on set, or frees a page. Plain bookkeeping: what would be found if nothing were ever dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pikv_env.oracle.timeline import Timeline, Visit
from pikv_runtime.ledger.state import I8
from pikv_runtime.requests import RequestList


@dataclass
class Use:
    """A visit's hold on one block. Iterations: `begin <= decode <= leaves <= end`."""

    visit: int
    begin: int
    decode: int
    """From here on it decodes over the block."""
    leaves: int
    """From here on the block is outside of its always-on set; `end` if it never is."""
    end: int


@dataclass
class Block:
    """A position range of one text (shared by all who use it), or of one visit alone."""

    depth: int
    chain: int
    content: int
    uses: list[Use] = field(default_factory=list)


@dataclass(frozen=True)
class Paging:
    """What decides how pages open and leave the always-on set."""

    page_tokens: int
    sink_pages: int
    window: int
    """Recent pages that are always read; the least that a control may ask."""


def lay_out(timeline: Timeline, workload: RequestList, paging: Paging) -> tuple[list[Block], I8]:
    """Blocks in order of their first use, and the leading blocks that every visit could find, (V,)."""
    available: dict[int, int] = {}  # hash -> first iteration at which somebody has filled it
    shared: dict[int, Block] = {}
    blocks: list[Block] = []
    found = np.zeros(len(timeline.visits), np.int64)
    for v, visit in enumerate(timeline.visits):
        request = workload.requests[visit.request]
        hashes = request.hash_ids
        found[v] = _findable(visit, hashes, request.prompt_tokens, available, paging.page_tokens)
        root = int(hashes[0]) if len(hashes) and hashes[0] else -1 - v
        for p in range(_pages(visit, paging.page_tokens)):
            use = _use(visit, v, p, paging)
            key = int(hashes[p]) if p < len(hashes) else 0
            if p < found[v]:
                shared[key].uses.append(use)
                continue
            filled = _filled(visit, p, paging.page_tokens)
            block = Block(p, root & 0x7FFFFFFF, request.content, [use])
            blocks.append(block)
            if key and filled is not None:
                shared.setdefault(key, block)
                available[key] = min(filled, available.get(key, filled))
    return blocks, found


def _pages(visit: Visit, page_tokens: int) -> int:
    """Pages that a visit ever has; the last iteration's token opens its page beforehand."""
    last = int(visit.tokens[-1]) // page_tokens + 1 if visit.ended > visit.decoding else 0
    return max(math.ceil(visit.target / page_tokens), last)


def _findable(visit: Visit, hashes: I8, prompt: int, available: dict[int, int], page_tokens: int) -> int:
    most = min((prompt - 1) // page_tokens, len(hashes))
    count = 0
    while count < most and available.get(int(hashes[count]), math.inf) <= visit.admitted:
        count += 1
    return count


def _filled(visit: Visit, p: int, page_tokens: int) -> int | None:
    """First iteration at which page `p` is full, None if that is never."""
    need = (p + 1) * page_tokens
    if visit.tokens[-1] < need:
        return visit.ended if int(visit.tokens[-1]) + _last_step(visit) >= need else None
    return visit.admitted + int(np.searchsorted(visit.tokens, need))


def _last_step(visit: Visit) -> int:
    """Tokens that the last iteration added: it decoded one, or finished the prompt."""
    return 1 if visit.ended > visit.decoding else max(0, visit.target - int(visit.tokens[-1]))


def _use(visit: Visit, v: int, p: int, paging: Paging) -> Use:
    """When visit `v` holds page `p`."""
    decode, end, prompt_pages = visit.decoding, visit.ended, math.ceil(visit.target / paging.page_tokens)
    begin = visit.admitted if p < prompt_pages else decode + p * paging.page_tokens - visit.target
    after = p + paging.window + 1  # once this page opens, page p has left the window
    leaves = decode if after < prompt_pages else decode + after * paging.page_tokens - visit.target
    if p < paging.sink_pages:
        leaves = end
    return Use(v, begin, max(begin, decode), min(max(leaves, begin), end), end)
