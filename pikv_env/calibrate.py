"""Calibration: measure what this machine charges for a model, as a profile.

Iterations of small workloads, served live, give most prices by one fit (`iteration_log`, `fit_prices`); what they
cannot tell apart, links and decisions have micro-benchmarks of their own (`microbench`).
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pikv_env import microbench
from pikv_env.iteration_log import EXTRAS, FITTED, IterationLog, phases, serve, stopwatch
from pikv_env.whole_file import write_whole
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.ledger.state import CODECS, Price
from pikv_runtime.models import load_model
from pikv_runtime.models.runner import geometry_of_model
from pikv_runtime.profiles import Profile

F8 = NDArray[np.float64]

ROUTER = "centroid"
BUDGET_S, QUICK_BUDGET_S = 60.0, 12.0  # of wall time for serving; the rest takes about 10 s
HELD_OUT = 0.2
TRIMMED = 0.1  # share of iterations, the worst fitted, that the refit leaves out
FEWEST_ITERATIONS = 60
READS = slice(Price.READ_NATIVE, Price.SELECT_PAGE)
TYPICAL_CODECS = 2  # of a decoding batch: native in the always-on set, and one rung outside

# Units of the prices: what one of each is.
UNITS: dict[Price, str] = {
    Price.STEP: "iteration",
    Price.PREFILL_TOKEN: "prompt token",
    Price.PREFILL_PAIR: "(query, context) token pair",
    Price.DECODE_TOKEN: "decoding request",
    Price.READ_NATIVE: "native page of a layer",
    Price.READ_BF16: "bf16 page of a layer",
    Price.READ_INT8: "int8 page of a layer",
    Price.READ_INT4: "int4 page of a layer",
    Price.SELECT_PAGE: "candidate page of a layer",
    Price.ENCODE_PAGE: "page of a layer encoded",
    Price.LINK_BYTE: "byte sent",
    Price.COLLECTIVE: "collective",
    Price.QUERY_BYTES: "query row, layer and remote rank",
    Price.DECISION: "decision",
    Price.HOST_BYTE: "byte between device and host",
}


@dataclass(frozen=True)
class Fit:
    """Seconds per unit that explain logged iterations."""

    columns: F8
    """(COLUMNS,) the fitted prices and then the extras; 0 where iterations cannot tell."""
    keep: NDArray[np.bool_]
    """(n,) iterations that were fitted on: neither held out nor trimmed."""
    held_out: NDArray[np.bool_]
    """(n,)"""


def fit_prices(features: F8, seconds: F8, seed: int = 0) -> Fit:
    """Non-negative least squares of relative errors, refitted without the worst tenth.

    Args:
        features: (n, COLUMNS) counts.
        seconds: (n,) measured times.
        seed: draws the held-out fifth.

    Raises:
        ValueError: too few iterations.
    """
    if len(seconds) < FEWEST_ITERATIONS:
        raise ValueError(f"{len(seconds)} iterations were logged, at least {FEWEST_ITERATIONS} are needed: more time")
    held_out = np.random.default_rng(seed).random(len(seconds)) < HELD_OUT
    keep = ~held_out
    for _ in range(3):
        columns = _solve(features[keep] / seconds[keep, None])
        wrong = _errors(features, columns, seconds)
        keep = ~held_out & (wrong <= np.quantile(wrong[~held_out], 1.0 - TRIMMED))
    return Fit(columns, keep, held_out)


def merge_reads(features: F8, relative: F8) -> F8:
    """Features with the reads of all codecs in the native column, each weighed by its `relative` (4,) kernel time.

    Pages of all codecs come and go together, so iterations tell what reading costs, and hardly what one codec costs
    more than another; a micro-benchmark of the kernel tells that.
    """
    merged = features.copy()
    merged[:, READS] = 0.0
    merged[:, Price.READ_NATIVE] = features[:, READS] @ relative
    return merged


def split_reads(columns: F8, relative: F8) -> F8:
    """The inverse for fitted prices: every codec's read price."""
    split = columns.copy()
    split[READS] = columns[Price.READ_NATIVE] * relative
    return split


def _solve(relative: F8) -> F8:
    """Non-negative prices under which every row of `relative` comes closest to 1."""
    from scipy.optimize import nnls

    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1.0  # never seen: any price will do, the solver's is 0
    prices: F8 = nnls(relative / scale, np.ones(len(relative)))[0] / scale
    return prices


def _errors(features: F8, columns: F8, seconds: F8) -> F8:
    return np.abs(features @ columns - seconds) / seconds


def fold(columns: F8, page_tokens: int, observe_tokens: int, chunk_tokens: int) -> F8:
    """Fitted prices (len(FITTED),) with the extras spread over the units that cause them.

    A decoding request fills a page every `page_tokens` steps and is observed every `observe_tokens`; a prompt's chunk
    fills pages once. The steps of sparse reading carry its fixed part and the usual number of codecs.
    """
    prices = columns[: len(FITTED)].copy()
    extra = dict(zip(EXTRAS, columns[len(FITTED) :], strict=True))
    prices[Price.STEP] += extra["sparse"] + TYPICAL_CODECS * extra["codecs"]
    prices[Price.DECODE_TOKEN] += extra["fills"] / page_tokens + extra["observed"] / observe_tokens
    prices[Price.PREFILL_TOKEN] += extra["fills"] / chunk_tokens
    return prices


def calibrate(
    model: str = "embedded",
    *,
    name: str = "cpu-gloo",
    quick: bool = False,
    links: bool = True,
    on_phase: Callable[[int, int], None] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Profile:
    """Measure this machine's profile for a model; uses one core.

    Args:
        model: `embedded`, or a directory in Hugging Face format.
        name: what the profile is called.
        quick: a rougher measurement, in under 25 s.
        links: measure links between two processes; without, they keep the prices of the shipped profile.
        on_phase: called with (phases done, all phases).
        device, dtype: of the model, as `pikv_runtime.load_model` takes them.

    Raises:
        ValueError: no such model, or a machine too slow for the time allowed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loaded, _ = load_model(model, device, dtype)
        log = _serve_all(loaded, quick, on_phase)
        prices, error = _prices(loaded, log)
        return _profile(loaded, prices, error, len(log.seconds), name, model, links)
    finally:
        torch.set_num_threads(threads)


def _serve_all(model: Any, quick: bool, on_phase: Callable[[int, int], None] | None) -> IterationLog:
    defaults = RuntimeConfig()
    log = IterationLog(defaults.page_tokens, defaults.observe_tokens)
    plan = phases(int(getattr(model.config, "max_position_embeddings", 2048)), quick)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if on_phase is not None:
            on_phase(done, len(plan))

    serve(model, plan, log, budget_s=QUICK_BUDGET_S if quick else BUDGET_S, on_phase=tick)
    return log


def _prices(model: Any, log: IterationLog) -> tuple[F8, float]:
    """Fitted and completed prices (len(FITTED),), and the error on iterations that the fit never saw."""
    features, seconds = log.arrays()
    geometry, now = geometry_of_model(model), stopwatch(model)
    kernel_s = np.array([microbench.read_price(codec, geometry, log.page_tokens, now) for codec in CODECS])
    fit = fit_prices(merge_reads(features, kernel_s / kernel_s[0]), seconds)
    columns = split_reads(fit.columns, kernel_s / kernel_s[0])
    if columns[Price.READ_NATIVE] <= 0:
        columns[READS] = kernel_s
    if columns[Price.SELECT_PAGE] <= 0:
        columns[Price.SELECT_PAGE] = microbench.select_price(geometry, ROUTER, now)
    if columns[Price.ENCODE_PAGE] <= 0:
        columns[Price.ENCODE_PAGE] = microbench.encode_price(geometry, log.page_tokens, now)
    error = float(np.median(_errors(features, columns, seconds)[fit.held_out]))
    prices = fold(columns, log.page_tokens, log.observe_tokens, RuntimeConfig().max_batch_tokens)
    return prices, error


def _profile(model: Any, prices: F8, error: float, iterations: int, name: str, source: str, links: bool) -> Profile:
    geometry, now = geometry_of_model(model), stopwatch(model)
    load, clock = os.getloadavg()[0], "CPU" if next(model.parameters()).device.type == "cpu" else "wall"
    priced = {p.name.lower(): float(prices[p]) for p in FITTED}
    priced["collective"], priced["link_byte"] = microbench.link_prices() if links else _shipped_links()
    priced["query_bytes"] = float(geometry.query_bytes())
    priced["decision"] = microbench.decision_price(geometry, now)
    priced["host_byte"] = microbench.host_price(geometry, RuntimeConfig().page_tokens, next(model.parameters()).device)
    return Profile(
        name=name,
        geometry="embedded" if source == "embedded" else geometry.name,
        source=f"pikv calibrate: {iterations} iterations of {source} served on one core of {_cpu_name()}, timed in "
        f"{clock} time; links: gloo between two processes; host_byte: copies of native pages; load average {load:.1f} "
        f"on {os.cpu_count()} cores",
        date=datetime.date.today().isoformat(),
        fit_error=round(error, 4),
        prices_s={p.name.lower(): _round(priced[p.name.lower()]) for p in Price},
    )


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _shipped_links() -> tuple[float, float]:
    from pikv_runtime.profiles import load_profile

    shipped = load_profile("cpu-gloo").prices_s
    return shipped["collective"], shipped["link_byte"]


def _cpu_name() -> str:
    """The CPU's model name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def check_path(path: str | Path) -> Path:
    """Raise ValueError where `load_profile` would not take `path` for a file."""
    if Path(path).suffix != ".json":
        raise ValueError(f"{path}: a profile's file name must end in .json")
    return Path(path)


def save_profile(profile: Profile, path: str | Path) -> Path:
    """Write a profile as JSON, atomically: a reader sees the old file or the whole new one."""
    path = check_path(path)
    write_whole(path, (json.dumps(asdict(profile), indent=1) + "\n").encode())
    return path
