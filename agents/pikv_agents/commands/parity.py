"""`pikv parity`: the trace environment against the live runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pikv_agents.commands.base import Command

if TYPE_CHECKING:
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
    observe: Literal["drawn", "first"] = "drawn"
    """Which step of so many is observed; on `first` the trace replays attention of that very step."""
    pressure: float = 0.2
    """Working set over cap; short requests have small working sets."""
    horizon_s: float = 10.0
    """Seconds of arrivals at level B, and in calibration half of it; stretched where the machine is slower than the
    profile `cpu-gloo`, so that as many requests come."""
    horizon_a_s: float = 2.5
    """Seconds of arrivals at level A."""
    load: float = 0.3
    """Offered load: by a profile measured first, where the clock is the wall's."""
    logs: Path | None = None
    """Folder that keeps the serving logs of level B."""
    seed: int = 0
    """Seed of the workload."""

    def run(self) -> dict[str, Any]:
        """Run the levels, or replay a log, and print what was found."""
        import torch

        from pikv_agents.commands.options import at_least_one, origin
        from pikv_runtime.policy import load_policy

        if self.log is not None:
            return replayed(self.log)
        if not self.level or set(self.level) - set("ab"):
            raise ValueError(f"level={self.level!r}: allowed are 'a', 'b' and 'ab'")
        at_least_one(repeats=self.repeats, policies=len(self.policies), observe_tokens=self.observe_tokens)
        for ranks in (*self.ranks, *self.model_ranks):
            at_least_one(ranks=ranks)
        for policy in self.policies:  # a wrong name is told now, not after minutes
            load_policy(policy)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return {**self._levels(), "meta": origin()}
        finally:
            torch.set_num_threads(threads)

    def _levels(self) -> dict[str, Any]:
        from pikv_agents.parity_stage import traces
        from pikv_runtime.models import load_model

        model, result = load_model("embedded")[0], dict[str, Any]()
        library = traces(self, model)
        if "a" in self.level:
            result["level_a"] = level_a_report(self, library, model)
        if "b" in self.level:
            result |= level_b_report(self, library, model)
        return result


def level_a_report(given: Parity, library: TraceLibrary, model: Any) -> dict[str, Any]:
    """Level A on every number of ranks."""
    from pikv_agents.parity_stage import pool_of
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
    from tempfile import TemporaryDirectory

    from tqdm import tqdm

    from pikv_agents.parity_stage import CALIBRATION_SEED, measured_profile, pool_of, price_facts, workload_facts
    from pikv_agents.report import parity, tables
    from pikv_env.level_b import measure
    from pikv_env.parity_verdict import TARGETS, causes, mean_causes, policy_errors, summarise

    console, by_ranks, rows = tables.console(), dict[str, Any](), list[dict[str, Any]]()
    for ranks in given.ranks:
        with TemporaryDirectory() as folder, tqdm(desc="level B", unit="run", leave=False) as bar:
            bar.set_description_str(f"{ranks} rank(s), measuring the machine")
            now = "cpu-gloo"
            if given.clock == "wall":
                now = measured_profile(given, library, ranks, model, Path(folder))
            pool = pool_of(given, library, ranks, given.horizon_s, given.seed, now)
            other = pool_of(given, library, ranks, given.horizon_s / 2, given.seed + CALIBRATION_SEED, now)
            found = measure(
                pool, other, given.policies, pressure=given.pressure, repeats=given.repeats, model=model,
                clock=given.clock, logs=given.logs, seed=given.seed,
                note=lambda text, bar=bar: (bar.set_description_str(text), bar.update(1), None)[2],
            )  # fmt: skip
        summary = summarise(found.rows)
        facts = {"workload": workload_facts(pool), "prices": price_facts(found), "causes": mean_causes(found.rows)}
        by_ranks[str(ranks)] = summary | facts
        rows += [asdict(row) | {"errors": policy_errors(row), "causes": causes(row)} for row in found.rows]
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
