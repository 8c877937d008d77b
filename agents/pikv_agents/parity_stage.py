"""What `pikv parity` serves: contents recorded for it, workloads on so many ranks, the machine as it is now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pikv_agents.commands.parity import Parity
    from pikv_env.level_b import Measurement
    from pikv_env.pool import WorkloadPool
    from pikv_env.traces.library import TraceLibrary

CALIBRATION_SEED = 1000
"""Added to the seed: calibration serves another workload of the same family."""


FEWEST_REQUESTS = 3
DRAIN = 3.0
"""Longest drain over the horizon: who is cut off counts as lost, and a machine that is a little slower would cut off
more."""


def traces(given: Parity, model: Any) -> TraceLibrary:
    """The library that was asked for, or short contents of the family's kinds, recorded now."""
    from dataclasses import replace

    from pikv_env.builtin import resolve_library
    from pikv_env.traces.recorder import RECORDING, record
    from pikv_env.workloads.content import build_contents
    from pikv_env.workloads.families import FAMILIES, check_text

    check_text((given.family,))
    if given.library is not None:
        return resolve_library(None if str(given.library) == "builtin" else given.library)
    contents = [
        content
        for kind in FAMILIES[given.family].kinds
        for content in build_contents(kind, 12, given.seed, prompt_range=(96, 256), output_range=(12, 32))
    ]
    return record(model, contents, replace(RECORDING, observe_tokens=given.observe_tokens))


def pool_of(
    given: Parity, library: TraceLibrary, ranks: int, horizon_s: float, seed: int, profile: str = "cpu-gloo"
) -> WorkloadPool:
    """One workload on so many ranks. Seconds of the horizon and of a control interval are those of `cpu-gloo`: on a
    slower machine both are longer, so that as many requests come, and as many iterations are decided at a time.

    Raises:
        ValueError: fewer than `FEWEST_REQUESTS` requests.
    """
    from pikv_env import EnvConfig, WorkloadPool
    from pikv_runtime.config import RuntimeConfig

    slower = _service_s(profile) / _service_s("cpu-gloo")
    horizon_s *= slower
    runtime = RuntimeConfig(
        codec="bf16", read="sparse", router="centroid", slots=16, blocks=4096, observe_tokens=library.observe_tokens,
        observe=given.observe, audit_share=0.5, interval_s=0.5 * slower,
    )  # fmt: skip
    config = EnvConfig(
        families=(given.family,), horizon_s=horizon_s, load=(given.load, given.load), workloads=1, ranks=ranks,
        runtime=runtime, drain=DRAIN, profile=profile,
    )  # fmt: skip
    pool = WorkloadPool(library, config, seed)
    found = len(pool.prepared[0].workload.requests)
    if found < FEWEST_REQUESTS:
        raise ValueError(
            f"horizon_s={horizon_s / slower:g}, load={given.load}: {found} requests of {given.family!r} come, at least "
            f"{FEWEST_REQUESTS} are needed to compare anything"
        )
    return pool


def _service_s(profile: str) -> float:
    """What a short request takes on a machine, seconds; see `Capacity.service_s`."""
    from pikv_runtime.ledger.state import Price
    from pikv_runtime.profiles import load_profile

    p = load_profile(profile).prices()
    return float(128 * p[Price.PREFILL_TOKEN] + 20 * (p[Price.STEP] / 4 + p[Price.DECODE_TOKEN]))


def measured_profile(given: Parity, library: TraceLibrary, ranks: int, model: Any, folder: Path) -> str:
    """A profile of this machine as it is now, in `folder`: what "load" means, and what U costs, should not be those of
    another day."""
    from pikv_env.calibrate import save_profile
    from pikv_env.level_b import CALIBRATION, LAMBDAS
    from pikv_env.live import run_live
    from pikv_env.log_prices import fit_log_prices, profile_of
    from pikv_runtime.serving_log import ServingLog

    pool, logs = pool_of(given, library, ranks, given.horizon_s / 2, given.seed + CALIBRATION_SEED), []
    # Once for nothing, in this process: loading compiled code is no iteration's price.
    run_live(pool, CALIBRATION[0], pressure=given.pressure, lambdas=LAMBDAS, model=model, processes=False)
    for number, policy in enumerate(CALIBRATION):
        file = folder / f"warm-up-{number}.npz"
        run_live(pool, policy, pressure=given.pressure, lambdas=LAMBDAS, model=model, record=file)
        logs.append(ServingLog.load(file))
    fit = fit_log_prices(logs, pool.prices)
    return str(save_profile(profile_of(fit, f"now-{ranks}", "embedded", ranks), folder / f"now-{ranks}.json"))


def workload_facts(pool: WorkloadPool) -> dict[str, float]:
    """How large the workload is."""
    prepared = pool.prepared[0]
    requests = prepared.workload.requests
    return {
        "requests": len(requests),
        "prompt_tokens": sum(r.prompt_tokens for r in requests),
        "output_tokens": sum(r.output_tokens for r in requests),
        "busy_share_of_u": prepared.reference.busy_share,
    }


def price_facts(found: Measurement) -> list[dict[str, Any]]:
    """The price lists of the rounds, and how well they fit."""
    from pikv_runtime.ledger.state import Price

    return [
        {"error": fit.error, "iterations": fit.iterations, **{p.name.lower(): float(fit.prices[p]) for p in Price}}
        for fit in found.fits
    ]
