"""What a stage costs in every state, before the caps have a price."""

from __future__ import annotations

import numpy as np

from pikv_env.oracle.paths import rank_of
from pikv_env.oracle.problem import FORCED, FRESH, GAP, GONE, Paths, Problem
from pikv_runtime.ledger.jit import jit
from pikv_runtime.ledger.state import F4, F8, I1, I4, I8


def rank_shares(problem: Problem, attention_s: F8 | None = None) -> F8:
    """(G, K) shares of each iteration's charge by rank: the slowest rank's is 1.

    max over ranks >= any weighted mean, so that any shares give a lower bound; these are exact where the slowest rank
    is the one that `attention_s` (G, K) says.
    """
    load = problem.base_s if attention_s is None else problem.base_s + attention_s
    shares = np.zeros_like(problem.base_s)
    shares[load.argmax(axis=0), np.arange(load.shape[1])] = 1.0
    return shares


def charge_sums(problem: Problem, shares: F8) -> F8:
    """(G, K + 1) running sums of rho · share: what a second more on a rank in a span of iterations costs."""
    sums = np.zeros((shares.shape[0], shares.shape[1] + 1))
    np.cumsum(problem.rho * shares, axis=1, out=sums[:, 1:])
    return sums


def stage_costs(problem: Problem, shares: F8) -> F8:
    """(S, L, 5) cost of spending a stage in a state: memory, reading (or not) and lost fidelity."""
    out = np.zeros((problem.stages, problem.layers, len(problem.state_bytes)))
    p = problem
    _fill(
        out, p.first, p.depth, p.home, p.errors, p.owner, p.reads_first, p.read_visit, p.read_begin, p.read_end,
        p.read_kind, p.visit_content, p.visit_weight, p.visit_decode, p.visit_step, p.mass, p.observe_tokens,
        charge_sums(p, shares), p.state_read_s, p.select_s,
    )  # fmt: skip
    out += (p.memory * (p.t1_s - p.t0_s))[:, None, None] * p.state_bytes
    return out


@jit
def _fill(  # type: ignore[no-untyped-def]
    out, first: I8, depth: I4, home: I1, errors: F4, owner: I1, reads_first: I8, read_visit: I4, read_begin: I4,
    read_end: I4, read_kind: I1, content: I4, weight: F8, decode: I4, step: I4, mass: F4, observe: int, sums: F8,
    read_s: F8, select_s: float,
) -> None:  # fmt: skip
    for b in range(first.shape[0] - 1):
        for s in range(first[b], first[b + 1]):
            for u in range(reads_first[s], reads_first[s + 1]):
                v = read_visit[u]
                k, end = read_begin[u], read_end[u]
                while k < end:  # decode steps between two observations replay one recorded mass
                    number = k - decode[v] + step[v]
                    until = min(end, k + observe - number % observe)
                    for layer in range(out.shape[1]):
                        m = 0.0
                        if content[v] >= 0:
                            o = min(number // observe, mass.shape[1] - 1)
                            m = weight[v] * mass[content[v], o, layer, depth[b]] * (until - k)
                        for state in range(5):
                            rank = owner[s] if state == FRESH else home[b, layer]
                            if state == GONE:
                                out[s, layer, state] += m
                                continue
                            charge = sums[rank, until] - sums[rank, k]
                            kept = charge * read_s[state] + m * errors[b, layer, state]
                            if read_kind[u] != FORCED:
                                kept = min(kept, charge * select_s + m)
                            out[s, layer, state] += kept
                    k = until


def miss_costs(problem: Problem, shares: F8) -> F8:
    """(S,) what it costs to compute the block anew at the stage's `USE`."""
    owner, at = problem.visit_owner, problem.visit_admitted
    charge = np.zeros(problem.stages)
    used = problem.visit >= 0
    v = problem.visit[used]
    charge[used] = problem.rho[at[v]] * shares[owner[v], at[v]]
    return charge * problem.miss_s


def change_costs(problem: Problem) -> tuple[F8, F8]:
    """(S,) what one rung down costs at the stage's start, and what a move home does; nothing in gaps, where the machine
    may be idle."""
    charge = np.where(problem.flags & GAP, 0.0, problem.rho[np.minimum(problem.begin, len(problem.rho) - 1)])
    return charge * problem.encode_s, charge * problem.move_s


def held_bytes(problem: Problem, paths: Paths) -> I8:
    """(G, K) bytes on every rank during every iteration."""
    p = problem
    steps = np.zeros((p.ranks, len(p.rho) + 1), np.int64)
    _count_bytes(p.first, p.home, p.owner, p.begin, p.end, p.state_bytes, paths, steps)
    return np.cumsum(steps, axis=1)[:, :-1]


@jit
def _count_bytes(
    first: I8, home: I1, owner: I1, begin: I4, end: I4, state_bytes: I8, paths: I1, steps: I8
) -> None:  # fmt: skip
    """Add every stage's bytes to `steps` (G, K + 1), whose running sum is what is held."""
    for b in range(first.shape[0] - 1):
        for s in range(first[b], first[b + 1]):
            for layer in range(paths.shape[1]):
                state = paths[s, layer]
                rank = rank_of(state, owner[s], home[b, layer])
                steps[rank, begin[s]] += state_bytes[state]
                steps[rank, end[s]] -= state_bytes[state]
