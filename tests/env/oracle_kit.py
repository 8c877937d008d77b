"""Tiny fixed-timeline problems, and their exact optimum by trying everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from pikv_env.oracle.evaluation import evaluate
from pikv_env.oracle.problem import DEMOTE, EVICT, FRESH, GONE, SEAL, TOP, USE, Problem
from pikv_env.oracle.stages import Stages
from pikv_env.oracle.timeline import Timeline, Visit
from pikv_env.oracle.uses import Block, Use

MOST = 600  # schedules that are tried


def tiny_problem(seed: int, layers: int = 1) -> Problem:
    """Two or three visits over 16 iterations on one or two ranks: a chain of one or two shared blocks, and blocks of
    single visits; caps that bind at times; one decision every four iterations."""
    rng = np.random.default_rng(seed)
    count, ranks = 16, int(rng.integers(1, 3))
    end = np.cumsum(rng.uniform(0.5, 1.5, count))
    start = end - np.diff(end, prepend=0.0) + 0.2 * (rng.random(count) < 0.2)  # now and then the machine is idle
    start[1:] = np.maximum(start[1:], end[:-1])
    begins = sorted(rng.choice(np.arange(1, 12), int(rng.integers(1, 3)), replace=False).tolist())
    begins = [0, *begins]
    visits = [
        Visit(v, k, min(k + 1, count - 1), min(count, k + int(rng.integers(3, 7))), int(rng.integers(ranks)), 0, 16,
              np.zeros(1, np.int64))
        for v, k in enumerate(begins)
    ]  # fmt: skip
    none = np.zeros(count)
    timeline = Timeline(start, end, np.ones(count), none, none, visits, 1.0, np.zeros(1), np.ones(1))
    chain = int(rng.integers(1, 3)) if layers == 1 else 1
    blocks = [Block(p, 1, 0, [_use(v, visit, 0) for v, visit in enumerate(visits)]) for p in range(chain)]
    if chain == 1:
        blocks += [Block(3, 2 + v, 0, [_use(v, visits[v], int(rng.integers(0, 2)))]) for v in range(layers == 1)]
    stages = Stages(timeline, [0, 4, 8, 12], rng.uniform(0.02, 0.2, 4))
    for block in blocks:
        stages.add(block)
    sizes = np.array([16, 8, 5, 3, 0])
    total = len(blocks) * layers
    mass = rng.dirichlet(np.ones(4), (1, 4, layers)).astype(np.float32)
    errors = np.broadcast_to(np.array([0.0, 0.002, 0.02, 0.2, 1.0], np.float32), (len(blocks), layers, 5))
    return Problem(
        start_s=start, end_s=end, rho=rng.uniform(0.02, 0.1, count), fixed_s=np.full(count, 0.5),
        base_s=rng.uniform(0.0, 0.4, (ranks, count)), cap=np.full((ranks, count), int(rng.uniform(4, 20) * total)),
        constant=0.1, memory=float(rng.uniform(0.0, 1e-3)), state_bytes=sizes,
        state_read_s=np.array([0.05, 0.05, 0.06, 0.08, 0.0]) * float(rng.uniform(0.2, 2.0)), select_s=0.01,
        encode_s=0.02, move_s=0.01, depth=np.array([b.depth for b in blocks], np.int32),
        chain=np.array([b.chain for b in blocks], np.int32),
        home=rng.integers(0, ranks, (len(blocks), layers)).astype(np.int8), errors=np.ascontiguousarray(errors),
        **stages.arrays(), visit_content=np.zeros(len(visits), np.int32),
        visit_weight=rng.uniform(0.0, 0.3, len(visits)), visit_decode=np.array([v.decoding for v in visits], np.int32),
        visit_step=np.zeros(len(visits), np.int32), visit_owner=np.array([v.owner for v in visits], np.int8),
        visit_admitted=np.array([v.admitted for v in visits], np.int32), mass=mass, observe_tokens=3,
        page_bytes_floor=0.0,
    )  # fmt: skip


def _use(v: int, visit: Visit, window: int) -> Use:
    return Use(v, visit.admitted, visit.decoding, min(visit.decoding + window, visit.ended), visit.ended)


def optimum(problem: Problem) -> float:
    """The least J of all schedules that keep the caps; NaN where there are too many to try."""
    found = [total for _, total in feasible(problem)]
    return min(found, default=math.nan)


def feasible(problem: Problem) -> Iterator[tuple[np.ndarray, float]]:
    """Every schedule (S, L) that keeps rules and caps, and its J; none where there are too many to try."""
    choices = [_paths(problem, b) for b in range(len(problem.depth))]
    if math.prod(len(c) for c in choices) > MOST:
        return
    for combination in itertools.product(*choices):
        paths = np.concatenate(combination).astype(np.int8)
        try:
            parts = evaluate(problem, paths)
        except ValueError:  # a block is there, or is not, against its chain
            continue
        if parts.over_bytes == 0:
            yield paths, parts.total


def _paths(p: Problem, b: int) -> list[np.ndarray]:
    """Every schedule (n, L) of a block that the rules might allow. What is computed anew is so in all layers."""
    rows: list[list[tuple[int, ...]]] = [[(FRESH,) * p.layers]]
    for s in range(p.first[b] + 1, p.first[b + 1]):
        longer = []
        for row in rows:
            starts = {row[-1]}
            if p.flags[s] & USE:  # computed anew if it is gone, or if its chain is
                starts = {(FRESH,) * p.layers} | (starts if GONE not in row[-1] else set())
            news = {new for states in starts for new in itertools.product(*(_next(int(p.flags[s]), k) for k in states))}
            longer += [[*row, new] for new in news]
        rows = longer
    return [np.array(row) for row in rows]


def _next(flags: int, state: int) -> list[int]:
    if flags & SEAL and state == FRESH:
        state = TOP
    found = [state]
    if flags & DEMOTE and TOP <= state < GONE:
        found += range(state + 1, GONE)
    if flags & EVICT and state < GONE:
        found.append(GONE)
    return found
