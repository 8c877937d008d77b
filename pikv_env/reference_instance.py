"""The reference instance on which the environment's speed is stated, and its relatives of other sizes.

A loaded server: every slot busy, cached blocks up to the cap, requests of equal size about documents of a Zipf
popularity. Sixteen requests of about 62 pages in four layers hold 4,000 live pages; 10,000 blocks lie cached beside
them. An interval is four iterations, in each of which one audited request is looked at (on average).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pikv_env.batch import TraceBatch
from pikv_env.config import EnvConfig
from pikv_env.pool import WorkloadPool
from pikv_env.traces.hashing import mix, to_hash_ids
from pikv_env.traces.library import TraceLibrary
from pikv_env.traces.synthetic import synthetic_library
from pikv_env.workloads.families import Family
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control
from pikv_runtime.ledger.drive import reference_run
from pikv_runtime.ledger.state import BF16, NATIVE, Price, Tally
from pikv_runtime.objective import Reference
from pikv_runtime.requests import Request, RequestList, distinct_blocks

KIND = "facts"
PAGE_TOKENS = 16
OUTPUT_TOKENS = 128
ZIPF = 0.9
OVERLOAD = 1.4  # arrivals over what the server can serve, were half of every prompt new: slots never run empty
FULL = 0.97  # of the cached blocks that the instance states
EMBEDDED = ("cpu-gloo", "embedded")
MANY_EXPERTS = ("h100-nvlink8", "qwen3-30b-a3b")
FRESH = 0.15  # no less than this share of a request's blocks is new, until the cache is full


@dataclass(frozen=True)
class Instance:
    """Sizes of a loaded server."""

    running: int = 16
    """Requests running at a time: all slots."""
    live_pages: int = 4000
    """Pages (of one layer) that running requests hold."""
    cached_blocks: int = 10_000
    """Blocks (a page range in all layers) kept for later prompts."""
    iterations: float = 4.0
    """Iterations of an interval."""
    audited: float = 4.0
    """Audited requests looked at in an interval."""
    audit_share: float = 1.0
    """Share of requests that are audited; the others are looked at as often."""
    experts: int = 8
    layers: int = 4

    @property
    def observe_tokens(self) -> int:
        """Decode steps of a request for each look at it."""
        return max(1, round(self.running * self.audit_share * self.iterations / self.audited))

    @property
    def request_pages(self) -> int:
        """Pages of a request in one layer, halfway through its output."""
        return max(OUTPUT_TOKENS // PAGE_TOKENS, round(self.live_pages / self.running / self.layers))

    @property
    def prompt_tokens(self) -> int:
        """Prompt of every request."""
        return self.request_pages * PAGE_TOKENS - OUTPUT_TOKENS // 2

    def library(self) -> TraceLibrary:
        """Synthetic traces of requests of this size."""
        return synthetic_library(
            seed=0,
            families=(KIND,),
            contents_per_family=16,
            layers=self.layers,
            experts=self.experts,
            page_tokens=PAGE_TOKENS,
            observe_tokens=self.observe_tokens,
            prompt_range=(self.prompt_tokens, self.prompt_tokens),
            output_range=(OUTPUT_TOKENS, OUTPUT_TOKENS),
        )

    def runtime(self) -> RuntimeConfig:
        """The simulated runtime."""
        return RuntimeConfig(
            page_tokens=PAGE_TOKENS,
            codec="bf16",
            read="sparse",
            router="centroid",
            slots=self.running,
            max_batch_tokens=max(256, 4 * self.running),
            audit_share=self.audit_share,
            observe_tokens=self.observe_tokens,
            layer_groups=self.layers,
        )


class LoadedPool(WorkloadPool):
    """Workloads that keep every slot of an instance busy, with arrivals for `intervals` beyond filling the cache."""

    def __init__(self, instance: Instance, intervals: int, workloads: int = 4, seed: int = 0) -> None:
        self.instance = instance
        filling = 2.0 * instance.cached_blocks / (FRESH * instance.request_pages)
        self.arrivals = int(filling + intervals * instance.iterations * instance.running / OUTPUT_TOKENS + 64)
        profile, geometry = EMBEDDED if instance.experts <= 8 else MANY_EXPERTS
        config = EnvConfig(
            families=("facts-poisson",),
            workloads=workloads,
            runtime=instance.runtime(),
            profile=profile,
            geometry=geometry,
            horizon_s=1e9,
        )
        super().__init__(instance.library(), config, seed)
        interval_s = self.iteration_s * instance.iterations
        self.config = replace(self.config, runtime=replace(self.config.runtime, interval_s=interval_s))

    @cached_property
    def iteration_s(self) -> float:
        """Seconds of an iteration with every slot decoding, reading all its pages."""
        p, n = self.prices, self.instance.running
        return float(p[Price.STEP] + n * p[Price.DECODE_TOKEN] + self.instance.live_pages * p[Price.READ_BF16])

    def pressure_of(self, workload: int) -> float:
        """Pressure at which the cap holds the live pages, sealed but for a native rest, and the cached blocks."""
        codec, m = self.store.codec_bytes, self.instance
        live = m.live_pages * int(codec[BF16]) + 6 * m.running * m.layers * int(codec[NATIVE])
        cap = live + m.cached_blocks * m.layers * int(codec[BF16])
        return self.prepared[workload].working_set_bytes / cap

    def _block_slots(self) -> int:
        """Bytes must run out before slots do, whatever the pressure that the cap amounts to."""
        return 2 * self.instance.cached_blocks + self.instance.running * self.pages + 1

    def _draw(self, family: Family, rng: np.random.Generator) -> tuple[RequestList, Reference]:
        workload = self.workload(rng)
        slots = distinct_blocks(workload.requests) + self.instance.running * self.pages + 1
        one, scratch = (self.ledger(1, len(workload.requests), blocks) for blocks in (1, slots))
        self._load(one, 0, workload)
        return workload, reference_run(one, 0, self.bank, scratch, most_busy=2.0)

    def workload(self, rng: np.random.Generator) -> RequestList:
        """Arrivals a little faster than service, about copies of documents."""
        m = self.instance
        prefill_s = m.prompt_tokens / 2 * float(self.prices[Price.PREFILL_TOKEN])
        gap_s = (OUTPUT_TOKENS * self.iteration_s / m.running + prefill_s) / OVERLOAD
        gaps = rng.exponential(gap_s, self.arrivals)
        gaps[: m.running] = 0.0
        copies = max(8, 2 * m.cached_blocks // m.request_pages)
        weights = np.arange(1, copies + 1, dtype=np.float64) ** -ZIPF
        copy = rng.choice(copies, len(gaps), p=weights / weights.sum())
        arrivals = zip(gaps.cumsum().tolist(), copy.tolist(), strict=True)
        requests = tuple(self._request(q, at, c) for q, (at, c) in enumerate(arrivals))
        return RequestList("reference", float(gaps.sum()) + 1.0, requests, family="reference")

    def _request(self, q: int, arrival_s: float, copy: int) -> Request:
        library, content = self.library, (copy * 4 + q % 4) % len(self.library)
        blocks, prompt = int(library.num_blocks[content]), int(library.prompt_tokens[content])
        shared = int(library.shared_tokens[content]) // library.page_tokens
        salt = np.where(np.arange(blocks) < shared, copy, 10**6 + q)
        ids: NDArray[np.int64] = to_hash_ids(mix(library.chain[content, :blocks], salt))
        output = int(library.output_tokens[content])
        texts = library.token_ids[content] if library.token_ids is not None else None
        return Request(
            q, arrival_s, prompt, output, ids, class_id=q % 4 // 3, content=content,
            prompt_ids=None if texts is None else texts[:prompt],
            exact_ids=None if texts is None else texts[prompt : prompt + output],
        )  # fmt: skip


def loaded_batch(instance: Instance, lanes: int, intervals: int, threads: int = 1, seed: int = 0) -> TraceBatch:
    """A batch of the instance, each lane played under the neutral control until its cache is full.

    Raises:
        RuntimeError: the arrivals end before the caches are full.
    """
    pool = LoadedPool(instance, intervals, seed=seed)
    batch = TraceBatch(pool.library, pool.config, lanes, seed, pool, threads)
    for lane in range(lanes):
        workload = lane % len(pool.prepared)
        batch.reset_lane(lane, workload=workload, pressure=pool.pressure_of(workload))
    neutral(batch)
    while not _full(batch, instance):
        batch.step()
        if batch.done.any():
            raise RuntimeError(f"{instance}: only {batch.state.cached_count.min()} blocks cached when arrivals ended")
    return batch


def neutral(batch: TraceBatch) -> None:
    """Ask for nothing: the start of every learner."""
    safe = Control.neutral(batch.num_groups)
    batch.control_groups[:], batch.control_globals[:] = safe.groups, safe.globals


def _full(batch: TraceBatch, instance: Instance) -> bool:
    """Whether every lane's cap binds, with as many blocks cached as the instance states."""
    s = batch.state
    evicts = s.tally[:, Tally.EVICTED_BLOCKS].min() > 0
    return bool(evicts and s.cached_count.min() >= FULL * instance.cached_blocks)
