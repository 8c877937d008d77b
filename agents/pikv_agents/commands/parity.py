"""`pikv parity`: the trace environment against the live runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pikv_agents.commands.base import Command

if TYPE_CHECKING:
    from pikv_env.level_b import Measurement
    from pikv_env.pool import WorkloadPool
    from pikv_env.traces.library import TraceLibrary

# From idle to thrashing.
POLICIES = (
    "capped_exact/lru",
    "static:cached_share=0.05/lru",
    "lazy/lru",
    "static:demote=true,r_pressure=2/h2o",
    "static:ratio=2/lru",
    "static:ratio=3.5/h2o",
    "pressure_proportional/h2o",
    "load_proportional/lru",
    "static:fan_out=0.5/lru",
    "static:ratio=2,fan_out=0.5/h2o",
    "static:fan_out=0.2/lru",
    "static:evict=0.1/streaming_llm",
    "static:ratio=3,evict=0.1,fan_out=0.25/streaming_llm",
    "random/lru",
    "static:evict=0.5,fan_out=0.5/lru",
    "static:ratio=4,evict=0.5,fan_out=0.05,window=1/streaming_llm",
)
CALIBRATION_SEED = 1000
"""Added to the seed: calibration serves another workload of the same family."""


DRAIN = 3.0
"""Longest drain over the horizon: who is cut off counts as lost, and a machine that is a little slower would cut off
more."""


@dataclass(frozen=True, kw_only=True)
class Parity(Command):
    """Compare the trace environment with the live runtime, policy by policy.

    Level A (model clock, recorded signals) must be identical at every iteration. Level B measures on the wall clock, on
    prices calibrated in the same run. With `--log` a recorded run is replayed through the simulator instead.
    """

    log: Path | None = None
    """Replay this serving log (of `pikv run --record-log`, or `--logs` here), and say where the simulator differs."""
    level: str = "ab"
    """Levels to run: a, b or ab."""
    policies: tuple[str, ...] = POLICIES
    """Heuristics' specs."""
    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks at level B; each rank is a process of its own."""
    model_ranks: tuple[int, ...] = (1, 2, 4)
    """Numbers of ranks at level A, played by one process."""
    repeats: int = 3
    """Live repeats of every policy at level B."""
    clock: Literal["wall", "model"] = "wall"
    """Of level B. On the model clock no time is measured: what remains are the errors of recorded signals."""
    family: str = "copy-onoff"
    """Workload family."""
    library: Path | None = None
    """Recorded traces, or `builtin` for those of the package; by default short contents are recorded first, so that
    many requests fit into the time."""
    observe_tokens: int = 8
    """Where contents are recorded here: attention is recorded, and observed, once in so many decode steps."""
    pressure: float = 0.2
    """Working set over cap; short requests have small working sets."""
    horizon_s: float = 8.0
    """Seconds of arrivals at level B, on the clock of the run."""
    horizon_a_s: float = 2.5
    """Seconds of arrivals at level A."""
    load: float = 0.45
    """Offered load, by the profile."""
    logs: Path | None = None
    """Folder that keeps the serving logs of level B."""
    seed: int = 0
    """Seed of the workload."""

    def run(self) -> dict[str, Any]:
        """Run the levels, or replay a log, and print what was found."""
        import torch

        from pikv_agents.commands.options import at_least_one, origin

        if self.log is not None:
            return replayed(self.log)
        if not self.level or set(self.level) - set("ab"):
            raise ValueError(f"level={self.level!r}: allowed are 'a', 'b' and 'ab'")
        at_least_one(repeats=self.repeats, policies=len(self.policies), observe_tokens=self.observe_tokens)
        for ranks in (*self.ranks, *self.model_ranks):
            at_least_one(ranks=ranks)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return {**self._levels(), "meta": origin()}
        finally:
            torch.set_num_threads(threads)

    def _levels(self) -> dict[str, Any]:
        from pikv_runtime.models import load_model

        model, result = load_model("embedded")[0], dict[str, Any]()
        library = traces(self, model)
        if "a" in self.level:
            result["level_a"] = level_a_report(self, library, model)
        if "b" in self.level:
            result |= level_b_report(self, library, model)
        return result


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


def pool_of(given: Parity, library: TraceLibrary, ranks: int, horizon_s: float, seed: int) -> WorkloadPool:
    """One workload on so many ranks."""
    from pikv_env import EnvConfig, WorkloadPool
    from pikv_runtime.config import RuntimeConfig

    runtime = RuntimeConfig(
        codec="bf16", read="sparse", router="centroid", slots=16, blocks=4096, observe_tokens=library.observe_tokens,
        audit_share=0.5, interval_s=0.5,
    )  # fmt: skip
    config = EnvConfig(
        families=(given.family,), horizon_s=horizon_s, load=(given.load, given.load), workloads=1, ranks=ranks,
        runtime=runtime, drain=DRAIN,
    )  # fmt: skip
    return WorkloadPool(library, config, seed)


def level_a_report(given: Parity, library: TraceLibrary, model: Any) -> dict[str, Any]:
    """Level A on every number of ranks."""
    from pikv_agents.report import tables
    from pikv_env.parity import level_a

    console, rows = tables.console(), list[dict[str, Any]]()
    for ranks in given.model_ranks:
        pool = pool_of(given, library, ranks, given.horizon_a_s, given.seed)
        found = level_a(pool, given.policies, pressure=given.pressure, model=model)
        rows += [{"ranks": ranks, **row} for row in found["rows"]]
        iterations = sum(r["iterations"] for r in found["rows"])
        verdict = "identical" if found["identical"] else f"DIFFERENT ({found['first_difference']})"
        console.print(f"level A, {ranks} rank(s): {len(found['rows'])} policies, {iterations} iterations: {verdict}")
    different = [f"{r['ranks']} rank(s), {r['policy']}: {r['first_difference']}" for r in rows if r["first_difference"]]
    return {"identical": not different, "first_difference": different[0] if different else None, "rows": rows}


def level_b_report(given: Parity, library: TraceLibrary, model: Any) -> dict[str, Any]:
    """Level B on every number of ranks: `level_b` and `rows`."""
    from tqdm import tqdm

    from pikv_agents.report import parity, tables
    from pikv_env.level_b import measure
    from pikv_env.parity_verdict import TARGETS, summarise

    console, by_ranks, rows = tables.console(), dict[str, Any](), list[dict[str, Any]]()
    for ranks in given.ranks:
        pool = pool_of(given, library, ranks, given.horizon_s, given.seed)
        other = pool_of(given, library, ranks, given.horizon_s / 2, given.seed + CALIBRATION_SEED)
        with tqdm(desc="level B", unit="run", leave=False) as bar:
            found = measure(
                pool, other, given.policies, pressure=given.pressure, repeats=given.repeats, model=model,
                clock=given.clock, logs=given.logs, seed=given.seed,
                note=lambda text, bar=bar: (bar.set_description_str(text), bar.update(1), None)[2],
            )  # fmt: skip
        summary = summarise(found.rows)
        by_ranks[str(ranks)] = summary | {"workload": workload_facts(pool), "prices": price_facts(found)}
        rows += [asdict(row) for row in found.rows]
        console.print(parity.policies(found.rows, f"level B, {ranks} rank(s), {given.clock} clock"))
        console.print(parity.targets(summary, TARGETS))
    worst = {name: _worst([b[name] for b in by_ranks.values()], least=name == "kendall_tau") for name in TARGETS}
    spread = max(b["run_to_run_spread"] for b in by_ranks.values())
    met = all(all(b["verdicts"].values()) for b in by_ranks.values())
    level_b = {**worst, "run_to_run_spread": spread, "targets": TARGETS, "all_met": met, "by_ranks": by_ranks}
    return {"level_b": level_b, "rows": rows}


def _worst(values: list[float | None], least: bool) -> float | None:
    """The worst of several; None (no pairs to rank) is worst of all."""
    known = [v for v in values if v is not None]
    return None if len(known) < len(values) else (min if least else max)(known)


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


def replayed(path: Path) -> dict[str, Any]:
    """Replay a log with its own times, then with modelled ones."""
    from pikv_agents.report import parity, tables
    from pikv_env.log_replay import model_log, policy_of, replay_log
    from pikv_runtime.serving_log import ServingLog

    log = ServingLog.load(path)
    found = replay_log(log, policy_of(log))
    modelled = model_log(log, policy_of(log))
    verdict = "identical" if found.identical else f"DIFFERENT at {found.first_difference}"
    console = tables.console()
    console.print(
        f"{path.name}: {log.header['policy'] or 'no policy named'}, {log.header['ranks']} rank(s), "
        f"{log.header['clock']} clock, decided by the {found.decided_by}: {found.iterations} of {log.iterations} "
        f"iterations: {verdict}",
        soft_wrap=True,
    )
    console.print(parity.outcomes(found.logged, found.replayed, modelled))
    return {
        "identical": found.identical,
        "first_difference": found.first_difference or None,
        "iterations": found.iterations,
        "decided_by": found.decided_by,
        "logged": found.logged,
        "replayed": found.replayed,
        "modelled": modelled,
    }
