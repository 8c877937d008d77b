"""The reference instance on which the environment's speed is stated, and its relatives of other sizes.

A loaded server: every slot busy, cached blocks up to the cap, requests of equal size about documents of a Zipf
popularity. Sixteen requests of about 62 pages in four layers hold 4,000 live pages; 10,000 blocks lie cached beside
them. An interval lasts until four audited iterations fall into it on average.
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
from pikv_runtime.ledger.drive import reference_run
from pikv_runtime.ledger.state import BF16, NATIVE, Price
from pikv_runtime.objective import Reference
from pikv_runtime.requests import Request, RequestList

KIND = "facts"
AUDIT_SHARE = 0.25
OBSERVE_TOKENS = 32
OUTPUT_TOKENS = 128
ZIPF = 0.9
OVERLOAD = 1.03  # arrivals over what the server can serve: slots never run empty
HEADROOM = 1.5  # arrivals go on for so long beyond the warm-up and the measured steps


@dataclass(frozen=True)
class Instance:
    """Sizes of a loaded server."""

    running: int = 16
    """Requests running at a time: all slots."""
    live_pages: int = 4000
    """Pages (of one layer) that running requests hold."""
    cached_blocks: int = 10_000
    """Blocks (a page range in all layers) kept for later prompts."""
    audited_iterations: float = 4.0
    """Iterations of an interval in which an audited request's fidelity is measured, on average."""
    experts: int = 8
    layers: int = 4
    warm_intervals: int = 240
    measured_intervals: int = 240
    """Steps that `LoadedPool` has arrivals for."""

    @property
    def request_pages(self) -> int:
        """Pages of a request in one layer, halfway through its output."""
        return max(OUTPUT_TOKENS // 16, round(self.live_pages / self.running / self.layers))

    @property
    def prompt_tokens(self) -> int:
        """Prompt of every request."""
        return self.request_pages * 16 - OUTPUT_TOKENS // 2

    @property
    def iterations(self) -> float:
        """Iterations of an interval: each running request is observed at every `OBSERVE_TOKENS`-th of them."""
        return self.audited_iterations * OBSERVE_TOKENS / (self.running * AUDIT_SHARE)

    def library(self) -> TraceLibrary:
        """Synthetic traces of requests of this size."""
        return synthetic_library(
            seed=0,
            families=(KIND,),
            contents_per_family=16,
            layers=self.layers,
            experts=self.experts,
            observe_tokens=OBSERVE_TOKENS,
            prompt_range=(self.prompt_tokens, self.prompt_tokens),
            output_range=(OUTPUT_TOKENS, OUTPUT_TOKENS),
        )

    def config(self, workloads: int) -> EnvConfig:
        """The environment of the instance."""
        runtime = RuntimeConfig(
            codec="bf16",
            read="sparse",
            router="centroid",
            slots=self.running,
            max_batch_tokens=max(256, 4 * self.running),
            audit_share=AUDIT_SHARE,
            observe_tokens=OBSERVE_TOKENS,
            layer_groups=self.layers,
        )
        return EnvConfig(families=("facts-poisson",), workloads=workloads, runtime=runtime, load=(0.5, 0.5))


class LoadedPool(WorkloadPool):
    """Workloads that keep every slot of an instance busy."""

    def __init__(self, instance: Instance, workloads: int = 4, seed: int = 0) -> None:
        self.instance = instance
        super().__init__(instance.library(), instance.config(workloads), seed)
        interval = self.iteration_s * instance.iterations
        runtime = replace(self.config.runtime, interval_s=interval)
        self.config = replace(self.config, runtime=runtime, horizon_s=self.horizon_s)

    @cached_property
    def iteration_s(self) -> float:
        """Seconds of an iteration with every slot decoding, reading all its pages."""
        p, n = self.prices, self.instance.running
        return float(p[Price.STEP] + n * p[Price.DECODE_TOKEN] + self.instance.live_pages * p[Price.READ_BF16])

    @cached_property
    def horizon_s(self) -> float:
        """Arrivals for all steps that are to be measured."""
        steps = self.instance.warm_intervals + self.instance.measured_intervals
        return HEADROOM * steps * self.iteration_s * self.instance.iterations

    @property
    def cap_bytes(self) -> int:
        """Room for the live pages, sealed but for a native rest, and for the cached blocks."""
        codec, m = self.store.codec_bytes, self.instance
        live = m.live_pages * int(codec[BF16]) + 6 * m.running * m.layers * int(codec[NATIVE])
        return live + m.cached_blocks * m.layers * int(codec[BF16])

    def cap_pressure(self, workload: int) -> float:
        """Pressure at which the cap is `cap_bytes`."""
        return self.prepared[workload].working_set_bytes / self.cap_bytes

    def _draw(self, family: Family, rng: np.random.Generator) -> tuple[RequestList, Reference]:
        workload = self._workload(rng)
        one, scratch = (self.ledger(1, len(workload.requests), blocks) for blocks in (1, 40_000))
        self._load(one, 0, workload)
        return workload, reference_run(one, 0, self.bank, scratch, most_busy=2.0)

    def _workload(self, rng: np.random.Generator) -> RequestList:
        """Arrivals a little faster than service, about copies of documents."""
        m = self.instance
        prefill = m.prompt_tokens / 2 * float(self.prices[Price.PREFILL_TOKEN])
        request_s = OUTPUT_TOKENS * self.iteration_s / m.running + prefill
        gaps = rng.exponential(request_s / OVERLOAD, int(self.horizon_s / request_s * OVERLOAD) + m.running)
        gaps[: m.running] = 0.0
        copies = max(8, 2 * m.cached_blocks // m.request_pages)
        weights = np.arange(1, copies + 1, dtype=np.float64) ** -ZIPF
        copy = rng.choice(copies, len(gaps), p=weights / weights.sum())
        arrivals = zip(gaps.cumsum().tolist(), copy.tolist(), strict=True)
        requests = [self._request(q, at, c) for q, (at, c) in enumerate(arrivals)]
        return RequestList("reference", float(gaps.sum()) + 1.0, tuple(requests), family="reference")

    def _request(self, q: int, arrival_s: float, copy: int) -> Request:
        library, content = self.library, (copy * 4 + q % 4) % len(self.library)
        blocks = int(library.num_blocks[content])
        shared = int(library.shared_tokens[content]) // library.page_tokens
        salt = np.where(np.arange(blocks) < shared, copy, 10**6 + q)
        ids: NDArray[np.int64] = to_hash_ids(mix(library.chain[content, :blocks], salt))
        prompt, output = int(library.prompt_tokens[content]), int(library.output_tokens[content])
        return Request(q, arrival_s, prompt, output, ids, class_id=q % 4 // 3, content=content)


def loaded_batch(instance: Instance, lanes: int, threads: int = 1, seed: int = 0) -> TraceBatch:
    """A batch of the instance, each lane warmed up under its neutral control until its cache is full."""
    pool = LoadedPool(instance, seed=seed)
    batch = TraceBatch(pool.library, pool.config, lanes, seed, pool, threads)
    for lane in range(lanes):
        workload = lane % len(pool.prepared)
        batch.reset_lane(lane, workload=workload, pressure=pool.cap_pressure(workload))
    neutral = batch.control_globals.copy()
    neutral[:] = batch.state.control_globals
    batch.control_globals[:], batch.control_groups[:] = neutral, batch.state.control_groups
    for _ in range(instance.warm_intervals):
        batch.step()
    return batch
