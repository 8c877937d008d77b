"""What a schedule costs, from its states alone: bytes, reads, misses and losses are counted anew, iteration by
iteration, and the slowest rank decides. Also whether it keeps the caps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pikv_env.oracle.costs import held_bytes
from pikv_env.oracle.problem import FORCED, FRESH, GAP, GONE, SEAL, TOP, USE, Paths, Problem
from pikv_env.oracle.schedule import Chains, present
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F4, F8, I1, I4, I8


@dataclass(frozen=True)
class Parts:
    """J of a schedule by part, each weighed by its λ."""

    latency: float
    memory: float
    loss: float
    attention_s: F8
    """(G, K) seconds of reading, by rank and iteration."""
    over_bytes: int
    """Most bytes over a cap; feasible if 0."""
    sparse_share: float
    """Share of the stretches in which not everything is read."""
    missed_blocks: int
    kept_blocks: int

    @property
    def total(self) -> float:
        """J."""
        return self.latency + self.memory + self.loss


def evaluate(problem: Problem, paths: Paths, read: str = "best") -> Parts:
    """Evaluate a schedule.

    Args:
        problem: The problem.
        paths: (S, L) states.
        read: `all` pages in every stretch, or `best`: in every stretch whichever costs less, reading all or choosing.
    """
    p, count = problem, len(problem.rho)
    missed = missed_uses(p, paths)
    extra = np.zeros((p.ranks, count))
    used = np.flatnonzero(missed)
    visits = p.visit[used]
    np.add.at(extra, (p.visit_owner[visits], p.visit_admitted[visits]), p.miss_s[used])
    common = p.fixed_s + _changes(p, paths, missed)
    attention = np.zeros((2, p.ranks, count + 1))
    losses = np.zeros((2, p.bins + 1))
    _read(
        paths, p.first, p.depth, p.home, p.errors, p.owner, p.reads_first, p.read_visit, p.read_begin, p.read_end,
        p.read_kind, p.visit_content, p.visit_weight, p.visit_decode, p.visit_step, p.mass, p.observe_tokens, p.rho,
        p.state_read_s, p.select_s, p.bin, attention, losses,
    )  # fmt: skip
    attention = np.cumsum(attention, axis=2)[:, :, :-1]
    slowest = (p.base_s + extra + attention).max(axis=1)
    bins = np.zeros(count, np.int64)
    bins[1:] = np.cumsum(_fresh_bins(p))[1:]
    delay = np.stack([np.bincount(bins, p.rho * row, p.bins + 1) for row in slowest])
    sparse = delay[1] + losses[1] < delay[0] + losses[0]
    if read == "all":
        sparse[:] = False
    chosen = sparse.astype(np.int64)
    every = np.arange(p.bins + 1)
    seconds = float((p.rho * common).sum())
    bytes_ = p.state_bytes[paths].sum(axis=1) * (p.t1_s - p.t0_s)
    return Parts(
        latency=p.constant + seconds + float(delay[chosen, every].sum()),
        memory=p.memory * float(bytes_.sum()),
        loss=float(losses[chosen, every].sum()),
        attention_s=attention[chosen[bins], :, np.arange(count)].T.copy(),
        over_bytes=int(np.maximum(0, held_bytes(p, paths) - p.cap).max()),
        sparse_share=float(sparse.mean()),
        missed_blocks=len(used),
        kept_blocks=int((p.visit >= 0).sum()) - len(used),
    )


def _fresh_bins(p: Problem) -> I8:
    """(K,) 1 at the first iteration of every stretch."""
    fresh = np.zeros(len(p.rho), np.int64)
    fresh[p.grid_first] = 1
    return fresh


def missed_uses(problem: Problem, paths: Paths) -> np.ndarray:
    """(S,) uses that are computed anew: something of the block is gone, or a block before it in the chain is missed."""
    chains = Chains(problem)
    runs = chains.runs(present(problem, paths))
    used = problem.visit >= 0
    missed = np.zeros(problem.stages, np.bool_)
    missed[used] = chains.place[used] >= runs[problem.visit[used]]
    return missed


def _changes(p: Problem, paths: Paths, missed: np.ndarray) -> F8:
    """(K,) seconds of encoding and moving, added to the iteration before which they happen; in gaps they are free.

    Raises:
        ValueError: a page does what no page may.
    """
    before = np.vstack([paths[:1], paths[:-1]]).astype(np.int64)
    before[missed] = FRESH
    starts = p.first[:-1][np.diff(p.first) > 0]
    before[starts] = FRESH
    now = paths.astype(np.int64)
    sealing = (before == FRESH) & ((p.flags & SEAL) > 0)[:, None]
    sealing[starts] = False
    at = np.where(sealing, TOP, before)
    lower = (now > at) & (now < GONE)
    wrong = (now < at) | (lower & (((p.flags & 4) == 0)[:, None] | (at == FRESH)))
    wrong |= (now == GONE) & (at != GONE) & ((p.flags & 8) == 0)[:, None]
    if wrong.any():
        s, layer = np.argwhere(wrong)[0]
        raise ValueError(f"stage {s}, layer {layer}: from state {before[s, layer]} to {now[s, layer]} is not allowed")
    rungs = np.where(lower, now - at, 0) + sealing
    seconds = rungs.sum(axis=1) * p.encode_s + sealing.sum(axis=1) * p.move_s
    out = np.zeros(len(p.rho))
    live = (p.flags & GAP) == 0
    np.add.at(out, p.begin[live], seconds[live])
    return out


@jit
def _read(  # type: ignore[no-untyped-def]
    paths: I1, first: I8, depth: I4, home: I1, errors: F4, owner: I1, reads_first: I8, read_visit: I4, read_begin: I4,
    read_end: I4, read_kind: I1, content: I4, weight: F8, decode: I4, step: I4, mass: F4, observe: int, rho: F8,
    read_s: F8, select_s: float, bins: I4, attention, losses,
) -> None:  # fmt: skip
    """Seconds of reading (differences, (2, G, K + 1)) and losses (2, bins) where all is read, and where not all is."""
    sums = np.zeros(rho.shape[0] + 1)
    for k in range(rho.shape[0]):
        sums[k + 1] = sums[k] + rho[k]
    for b in range(first.shape[0] - 1):
        for s in range(first[b], first[b + 1]):
            for u in range(reads_first[s], reads_first[s + 1]):
                v, k = read_visit[u], read_begin[u]
                while k < read_end[u]:
                    number = k - decode[v] + step[v]
                    until = min(read_end[u], k + observe - number % observe)
                    for layer in range(paths.shape[1]):
                        state, m = paths[s, layer], 0.0
                        if content[v] >= 0:
                            o = min(number // observe, mass.shape[1] - 1)
                            m = weight[v] * mass[content[v], o, layer, depth[b]] * (until - k)
                        if state == GONE:
                            losses[0, bins[s]] += m
                            losses[1, bins[s]] += m
                            continue
                        rank = owner[s] if state == FRESH else home[b, layer]
                        blurred = m * errors[b, layer, state]
                        attention[0, rank, k] += read_s[state]
                        attention[0, rank, until] -= read_s[state]
                        losses[0, bins[s]] += blurred
                        seconds, lost = read_s[state], blurred
                        if read_kind[u] != FORCED:
                            if (sums[until] - sums[k]) * read_s[state] + blurred > m:
                                seconds, lost = 0.0, m
                            seconds += select_s
                        attention[1, rank, k] += seconds
                        attention[1, rank, until] -= seconds
                        losses[1, bins[s]] += lost
                    k = until


__all__ = ["USE", "Parts", "evaluate", "missed_uses"]
