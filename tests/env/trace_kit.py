"""Small trace environments for tests: one synthetic library, short episodes, shared pools."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pikv_env.batch import TraceBatch
from pikv_env.builtin import make_config
from pikv_env.pool import WorkloadPool
from pikv_env.traces import TraceLibrary, synthetic_library
from pikv_runtime.contract import GLOBAL_CONTROLS, GROUP_CONTROLS, Control
from pikv_runtime.profiles import load_profile

# Round prices of a made-up machine: the shipped profile is measured anew from time to time, tests should not care.
PRICES_S = {
    "step": 6e-3, "prefill_token": 1.2e-4, "prefill_pair": 3e-8, "decode_token": 2.5e-4, "read_native": 1.2e-6,
    "read_bf16": 1.5e-6, "read_int8": 2.5e-6, "read_int4": 3.5e-6, "select_page": 4e-7, "encode_page": 3e-5,
    "link_byte": 1e-9, "collective": 3e-4, "query_bytes": 1040.0, "decision": 2e-5, "host_byte": 2e-10,
}  # fmt: skip

# Pressures are low because so short an episode has a small working set, and a cap has a floor.
SMALL: dict[str, Any] = {"horizon_s": 40.0, "workloads": 2, "load": 0.3, "pressure": (0.02, 1.0)}


@functools.cache
def library() -> TraceLibrary:
    return synthetic_library(0, contents_per_family=8)


@functools.cache
def _pool(config: Any, seed: int) -> WorkloadPool:
    return WorkloadPool(library(), config, seed)


@functools.cache
def _made_up() -> str:
    return write_profile(Path(tempfile.mkdtemp(prefix="pikv-profile-")))


def make_batch(lanes: int = 1, seed: int = 0, threads: int = 1, **fields: Any) -> TraceBatch:
    config = make_config(**{"profile": _made_up(), **SMALL, **fields})
    return TraceBatch(library(), config, lanes, seed, _pool(config, seed), threads)


def write_profile(folder: Path, **prices_s: float) -> str:
    """The made-up profile with some prices changed; its path."""
    profile = load_profile("cpu-gloo")
    path = folder / "profile.json"
    path.write_text(json.dumps({**vars(profile), "prices_s": {**PRICES_S, **prices_s}}))
    return str(path)


def random_controls(batch: TraceBatch, rng: np.random.Generator) -> None:
    """Controls anywhere in their ranges, for every lane."""
    for values, columns in (
        (batch.control_groups, GROUP_CONTROLS),
        (batch.control_globals, GLOBAL_CONTROLS),
    ):
        low, high = np.array([c.low for c in columns]), np.array([c.high for c in columns])
        values[:] = rng.uniform(low, high, values.shape)


def neutral_controls(batch: TraceBatch) -> None:
    neutral = Control.neutral(batch.num_groups)
    batch.control_groups[:], batch.control_globals[:] = neutral.groups, neutral.globals


def play(batch: TraceBatch, rng: np.random.Generator | None = None) -> np.ndarray:
    """Play all lanes to their end, under random controls (None: neutral). Returns summed rewards (n,)."""
    total = np.zeros(batch.num_envs)
    for _ in range(10_000):
        neutral_controls(batch) if rng is None else random_controls(batch, rng)
        total += batch.step()
        if batch.done.all():
            return total
    raise AssertionError("an episode does not end")
