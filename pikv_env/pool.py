"""A pool of prepared workloads: requests loaded, U run, working set known. Episodes copy from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pikv_env.config import EnvConfig
from pikv_env.traces.library import TraceLibrary
from pikv_env.workloads import make_workload
from pikv_env.workloads.families import FAMILIES
from pikv_runtime.ledger import build, clear, load_requests, observations, pages_needed
from pikv_runtime.ledger.drive import Bank, reference_run
from pikv_runtime.ledger.setup import Shape
from pikv_runtime.ledger.state import INT8, NATIVE, Ledger, Price
from pikv_runtime.objective import Reference
from pikv_runtime.profiles import load_geometry, load_profile
from pikv_runtime.requests import RequestList


@dataclass(frozen=True)
class Prepared:
    """One workload of the pool."""

    workload: RequestList
    reference: Reference
    observations: np.ndarray
    """(N,) observations due to each request."""
    working_set_bytes: float
    floor_bytes: int
    """Least cap of one rank: the largest request must fit native."""


def make_bank(library: TraceLibrary, router: str, pages: int) -> Bank:
    """Recorded signals in the ledger's layout, padded to `pages`; `score` is the chosen router's."""
    pad = max(0, pages - library.tags.shape[2])
    wide = [(0, 0)] * 2 + [(0, pad)]
    tags = np.pad(library.tags, wide, constant_values=-1)
    mass = np.pad(library.mass, [(0, 0), *wide])
    if router == "gate":
        chosen = np.maximum(tags, 0).astype(np.int64)[:, None].repeat(mass.shape[1], 1)
        score = np.take_along_axis(library.gate, chosen, axis=3)
    else:
        score = np.pad(library.score, [(0, 0), *wide])
    errors = np.pad(library.error, [*wide, (0, 0)]).transpose(0, 2, 1, 3)
    contiguous = (np.ascontiguousarray(a, dtype=np.float32) for a in (errors, mass, score))
    return Bank(np.ascontiguousarray(tags), *contiguous)


def working_set(workload: RequestList, reference: Reference, block_bytes: float, page_tokens: int) -> float:
    """Mean bytes that a clairvoyant would hold: every block from its first use to its last, at `block_bytes`."""
    ids, starts, ends = [], [], []
    for request in workload.requests:
        blocks = math.ceil((request.prompt_tokens + request.output_tokens) / page_tokens)
        stay = 0.01 * blocks  # a use is not a moment; its exact length hardly matters against minutes of reuse
        ids.append(request.hash_ids[: request.prompt_tokens // page_tokens])
        starts.append(np.full(len(ids[-1]), request.arrival_s))
        ends.append(np.full(len(ids[-1]), request.arrival_s + stay))
    flat, begin, end = np.concatenate(ids), np.concatenate(starts), np.concatenate(ends)
    _, inverse = np.unique(flat, return_inverse=True)
    first = np.full(inverse.max() + 1, np.inf)
    last = np.zeros(inverse.max() + 1)
    np.minimum.at(first, inverse, begin)
    np.maximum.at(last, inverse, end)
    return float((last - first).sum() / reference.duration_s * block_bytes) + 0.5 * reference.live_bytes_mean


class WorkloadPool:
    """`config.workloads` workloads over `config.families`, deterministic in `seed`."""

    def __init__(self, library: TraceLibrary, config: EnvConfig, seed: int) -> None:
        self.config, self.library = config, library
        self.profile, geometry = load_profile(config.profile), load_geometry(config.geometry)
        self.shape: Shape = geometry.shape(config.runtime.page_tokens)
        self.prices = self.profile.prices()
        rng = np.random.default_rng(seed)
        drawn = [
            self._draw(config.families[j % len(config.families)], int(rng.integers(2**31)), rng)
            for j in range(config.workloads)
        ]
        self.requests = max(len(w.requests) for w in drawn)
        self.pages = max(pages_needed(w.requests, config.runtime.page_tokens) for w in drawn)
        self.bank = make_bank(library, config.runtime.router, self.pages)
        self.store = self.ledger(len(drawn))
        scratch = self.ledger(1)
        self.prepared = [self._prepare(j, w, scratch) for j, w in enumerate(drawn)]

    def ledger(self, lanes: int) -> Ledger:
        """A ledger wide enough for every workload of the pool."""
        state = build(
            self.config.runtime,
            self.shape,
            self.classes,
            lanes=lanes,
            requests=self.requests,
            pages=self.pages,
            ranks=self.config.ranks,
        )
        state.prices[:] = self.prices
        return state

    def service_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Compute a request takes, seconds; a decode step is shared by four requests on average."""
        p = self.prices
        step = p[Price.STEP] / 4 + p[Price.DECODE_TOKEN]
        return float(prompt_tokens * p[Price.PREFILL_TOKEN] + output_tokens * step)

    def _draw(self, family: str, seed: int, rng: np.random.Generator) -> RequestList:
        load = rng.uniform(*self.config.load)
        workload = make_workload(FAMILIES[family], self.library, seed, self.config.horizon_s, load, self.service_s)
        self.classes = workload.classes
        return workload

    def _prepare(self, j: int, workload: RequestList, scratch: Ledger) -> Prepared:
        clear(self.store, j)
        load_requests(
            self.store,
            j,
            workload.requests,
            audit_seed=workload.seed,
            audit_share=self.config.runtime.audit_share,
        )
        reference = reference_run(self.store, j, self.bank, scratch)
        block = self.shape.layers * int(self.store.codec_bytes[INT8])
        tokens = self.config.runtime.page_tokens
        largest = pages_needed(workload.requests, tokens) * self.shape.layers * int(self.store.codec_bytes[NATIVE])
        return Prepared(
            workload,
            reference,
            observations(self.store, j),
            working_set(workload, reference, block, tokens),
            floor_bytes=int(largest * 1.25),
        )
