"""A pool of prepared workloads: requests loaded, U run, working set known. Episodes copy from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pikv_env.capacity import Capacity
from pikv_env.config import EnvConfig
from pikv_env.folding import Folding
from pikv_env.traces.library import TraceLibrary
from pikv_env.workloads import make_workload
from pikv_env.workloads.families import FAMILIES, Family
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.ledger import build, load_requests, observations, pages_needed, set_classes
from pikv_runtime.ledger.drive import MOST_BUSY, Bank, SaturatedError, reference_run
from pikv_runtime.ledger.setup import Shape
from pikv_runtime.ledger.state import INT8, NATIVE, NO_CAP, Ledger
from pikv_runtime.objective import Reference
from pikv_runtime.profiles import load_geometry, load_profile
from pikv_runtime.requests import BATCH, INTERACTIVE, RequestList, distinct_blocks

DRAWS = 12
LESS = {"time": 0.9, "slots": 0.8}
"""Factor on the load after a workload was refused, by what the load is a share of."""
LONGEST = 1.5
"""Most horizons that U may take, unless the drain limit lies later: else even U would leave requests unserved."""


@dataclass(frozen=True)
class Prepared:
    """One workload of the pool."""

    workload: RequestList
    reference: Reference
    observations: np.ndarray
    """(N,) observations due to each request."""
    working_set_bytes: float
    floor_bytes: int
    """Least cap of one rank: all pages of the longest request, native. The ledger refuses a request that needs more
    (`schedule._fits_alone`); at this cap the longest is served whenever nobody else runs, and the others beside it as
    far as there is room."""


def make_bank(library: TraceLibrary, router: str, pages: int) -> Bank:
    """Recorded signals in the ledger's layout, exactly `pages` wide; `score` is the chosen router's."""
    pad = max(0, pages - library.tags.shape[2])
    wide = [(0, 0)] * 2 + [(0, pad)]
    # Cut, too: no request of the pool is longer, and the compiled read-set rule takes its width from `score`.
    tags = np.pad(library.tags, wide, constant_values=-1)[..., :pages]
    mass = np.pad(library.mass, [(0, 0), *wide])[..., :pages]
    if router == "gate":
        chosen = np.maximum(tags, 0).astype(np.int64)[:, None].repeat(mass.shape[1], 1)
        score = np.take_along_axis(library.gate, chosen, axis=3)
    else:
        score = np.pad(library.score, [(0, 0), *wide])[..., :pages]
    errors = np.pad(library.error, [*wide, (0, 0)])[:, :, :pages].transpose(0, 2, 1, 3)
    contiguous = (np.ascontiguousarray(a, dtype=np.float32) for a in (errors, mass, score))
    return Bank(np.ascontiguousarray(tags), *contiguous)


def working_set(workload: RequestList, reference: Reference, block_bytes: float, page_tokens: int) -> float:
    """Mean bytes that a clairvoyant holds: every block from its first use to its last, at `block_bytes`."""
    ids, starts, ends = [], [], []
    for request in workload.requests:
        blocks = math.ceil((request.prompt_tokens + request.output_tokens) / page_tokens)
        stay = 0.01 * blocks  # a use takes time; how much hardly matters against minutes of reuse
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
    """`config.workloads` workloads over `config.families` in turn, deterministic in `seed`.

    In a pool of one family, family and `seed` name the workload.

    Raises:
        ValueError: a family offers no workload whose uncapped exact run leaves compute to spare.
    """

    def __init__(self, library: TraceLibrary, config: EnvConfig, seed: int) -> None:
        self.config, self.library, self.seed = config, library, seed
        self.profile, self.folding = load_profile(config.profile), folding_of(library, config)
        self.shape: Shape = self.folding.shape(config.runtime.page_tokens)
        self.capacity = Capacity.of(config, self.folding)
        self.prices, self.load_of = self.capacity.prices, self.capacity.load_of
        self.classes = tuple(self.folding.service_class(one) for one in (INTERACTIVE, BATCH))
        families = [FAMILIES[config.families[j % len(config.families)]] for j in range(config.workloads)]
        self.pages = longest_pages(library, families)
        self.bank = make_bank(library, config.runtime.router, self.pages)
        drawn = [self._draw(family, np.random.default_rng([seed, j])) for j, family in enumerate(families)]
        self.requests = max(len(workload.requests) for workload, _ in drawn)
        self.store = self.ledger(len(drawn), blocks=1)
        self.prepared = [self._prepare(j, *pair) for j, pair in enumerate(drawn)]
        self.blocks = self._block_slots()

    def ledger(self, lanes: int, requests: int | None = None, blocks: int | None = None) -> Ledger:
        """A ledger wide enough for every workload of the pool, or for `requests` requests and `blocks` block slots."""
        state = build(
            self._runtime(self.blocks if blocks is None else blocks),
            self.shape,
            self.classes,
            lanes=lanes,
            requests=self.requests if requests is None else requests,
            pages=self.pages,
            ranks=self.config.ranks,
        )
        state.prices[:] = self.prices
        return state

    def _runtime(self, blocks: int) -> RuntimeConfig:
        """The simulated runtime; where its host tier is a multiple of the cap, lanes are told how large it is."""
        host = NO_CAP if self.config.host > 0 else self.config.runtime.host_bytes
        return replace(self.config.runtime, blocks=blocks, host_bytes=host)

    def _block_slots(self) -> int:
        """Block slots of a lane: under the largest cap, bytes must run out before slots do (down to int8 pages), on
        the device and in the host."""
        block_bytes = self.shape.layers * int(self.store.codec_bytes[INT8])
        caps = [max(p.working_set_bytes / self.config.pressure[0], p.floor_bytes) for p in self.prepared]
        caps = [cap + self.config.host_bytes(int(cap)) for cap in caps]
        most = max(distinct_blocks(p.workload.requests) for p in self.prepared)
        running = self.config.runtime.slots * self.pages + 1
        return running + min(most, math.ceil(max(caps) * self.config.ranks / block_bytes))

    def service_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """What a request takes of the capacity that `load` is a share of, seconds."""
        return self.capacity.service_s(prompt_tokens, output_tokens)

    def _draw(self, family: Family, rng: np.random.Generator) -> tuple[RequestList, Reference]:
        """A workload and its U. A burst can overload even U: then draw again, at less load.

        Where `load` is a share of the slots, prefill may be what runs out first: without reuse it takes a multiple of
        the time that slots are reckoned with, so loads fall faster.
        """
        refused = "no requests within the horizon"
        for attempt in range(DRAWS):
            load = rng.uniform(*self.config.load) * LESS[self.load_of] ** attempt
            workload_seed, horizon_s = int(rng.integers(2**31)), self.config.horizon_s
            workload = make_workload(family, self.library, workload_seed, horizon_s, load, self.service_s)
            if not workload.requests:
                continue
            # U has no cap: it must not run out of slots either.
            slots = distinct_blocks(workload.requests) + self.config.runtime.slots * self.pages + 1
            one, scratch = (self.ledger(1, len(workload.requests), blocks) for blocks in (1, slots))
            self._load(one, 0, workload)
            try:
                reference = self._reference(one, scratch)
            except SaturatedError as error:
                refused = str(error)
                continue
            refused = self._unfit(reference)
            if not refused:
                return workload, reference
        raise ValueError(f"family {family.id!r}: {DRAWS} workloads refused: {refused}")

    def _reference(self, one: Ledger, scratch: Ledger) -> Reference:
        """U of the workload loaded in `one`; raises SaturatedError where it leaves too little of the capacity."""
        if self.load_of == "time":
            return reference_run(one, 0, self.bank, scratch)
        reference = reference_run(one, 0, self.bank, scratch, most_busy=math.inf)
        n, slots = one.num_requests[0], self.config.runtime.slots
        present = float((scratch.req_finish_s[0, :n] - scratch.req_arrival_s[0, :n]).sum()) / reference.duration_s
        if present > MOST_BUSY * slots:
            raise SaturatedError(
                f"the uncapped exact run has {present:.1f} requests in the system, at most {MOST_BUSY:.0%} of {slots} "
                "slots is fair"
            )
        return reference

    def _unfit(self, reference: Reference) -> str:
        """Why a workload would pay for not serving it; empty where it would not."""
        limit_s = self.config.horizon_s * max(LONGEST, 1 + self.config.drain)
        if reference.duration_s > limit_s:
            return f"the uncapped exact run takes {reference.duration_s:.0f} s, at most {limit_s:.0f} s is fair"
        if reference.audited <= 0 and self.config.runtime.audit_share > 0:
            return "no request is audited, so nothing would be lost by blurring all"
        return ""

    def _load(self, target: Ledger, lane: int, workload: RequestList) -> None:
        share = self.config.runtime.audit_share
        load_requests(target, lane, workload.requests, audit_seed=workload.seed, audit_share=share)
        set_classes(target, lane, [self.folding.service_class(one) for one in workload.classes])

    def _prepare(self, j: int, workload: RequestList, reference: Reference) -> Prepared:
        self._load(self.store, j, workload)
        tokens = self.config.runtime.page_tokens
        int8, native = (self.shape.layers * int(self.store.codec_bytes[codec]) for codec in (INT8, NATIVE))
        return Prepared(
            workload,
            reference,
            observations(self.store, j),
            working_set(workload, reference, int8, tokens),
            floor_bytes=pages_needed(workload.requests, tokens) * native,
        )


def folding_of(library: TraceLibrary, config: EnvConfig) -> Folding:
    """How the traces stand for the configured geometry."""
    return Folding(load_geometry(config.geometry), library.layers, library.experts, config.token_scale)


def longest_pages(library: TraceLibrary, families: Sequence[Family]) -> int:
    """Pages of the longest content that any of `families` may draw."""
    rows = np.concatenate([library.rows_of(kind) for family in families for kind in family.kinds])
    return math.ceil(int(library.total_tokens[rows].max()) / library.page_tokens)
