"""Quickstart: one turn of the whole loop, small but real, from serving to a learned policy in the live runtime.

serve and record → headroom → train → evaluate → export → live on two ranks → report. Each stage prints what it
found and leaves a file in the run's folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pikv_agents.evaluation import RIVALS, evaluate
from pikv_agents.exporting import commit, export, machine
from pikv_agents.headroom import headroom
from pikv_agents.headroom_config import HeadroomConfig
from pikv_agents.live import live_pool, live_section
from pikv_agents.presets import QUICK, TrainConfig
from pikv_agents.report import html, tables
from pikv_agents.report.style import save
from pikv_agents.report.verdict import verdict
from pikv_agents.rollout import Episode, Suite
from pikv_agents.tracking import write_json
from pikv_agents.training import TrainResult, train
from pikv_env.coverage import coverage
from pikv_env.precompile import start_precompile
from pikv_env.traces.library import TraceLibrary
from pikv_env.traces.recorder import record_kinds
from pikv_env.workloads.families import FAMILIES
from pikv_runtime.models import load_model
from pikv_runtime.policy import shelf

PACKAGES = ("torch", "numpy", "numba", "transformers", "gymnasium", "stable-baselines3", "wandb")


@dataclass(frozen=True)
class QuickstartConfig:
    """Sizes of the stages: small enough for ten minutes of two cores, installation included."""

    held_out: str = "needle-onoff"
    """Family of evaluation and live run; never trained on."""
    headroom_families: tuple[str, ...] = ("facts-poisson", "prose-diurnal", "needle-onoff")
    contents: int = 6
    """Contents that are recorded of each kind."""
    prompt_tokens: tuple[int, int] = (128, 900)
    output_tokens: tuple[int, int] = (16, 128)
    training: TrainConfig = QUICK
    pressure: float = 2.0
    """Working set over cap, in evaluation and live run."""
    seeds: int = 8
    """Workloads of the evaluation."""
    live_load: float = 0.12
    live_horizon_s: float = 40.0
    ranks: int = 2
    seed: int = 0
    track: str = "offline"
    threads: int = 2
    lookahead: HeadroomConfig = field(default_factory=HeadroomConfig.quick)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Content kinds that the families of any stage draw from."""
        used = (*self.training.env.families, *self.headroom_families, self.held_out, *self.validation)
        return tuple(dict.fromkeys(kind for family in used for kind in FAMILIES[family].kinds))

    @property
    def validation(self) -> tuple[str, ...]:
        """Families that choose the checkpoint."""
        return self.training.validation or ("mixed-bursty",)


class Quickstart:
    """The stages, in order; what they find gathers in `summary`.

    Args:
        config: Sizes.
        out: Folder of the run; what an earlier quickstart left there is replaced.
        console: Where to print.
    """

    def __init__(self, config: QuickstartConfig, out: Path, console: Console, command: str = "") -> None:
        self.config, self.out, self.console, self.command = config, out, console, command
        self.summary: dict[str, Any] = {}
        self._stages: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Everything; returns what `summary.json` holds."""
        self.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        library = self.record()
        suite = Suite(library, self.config.training.env, self.config.threads)
        room = self.headroom(suite)
        result = self.train(library)
        found = self.evaluate(suite, room, result)
        bundle = self.export(result, found)
        self.live(library, bundle)
        return self.report()

    @contextmanager
    def _stage(self, name: str, title: str) -> Iterator[Callable[[str], None]]:
        """Print a heading, time what follows; yields a function that prints a remark."""
        self.console.print(f"\n[bold cyan]{len(self._stages) + 1}/7 {title}[/]")
        begin = time.perf_counter()
        yield lambda text: self.console.print(f"[dim]  {text}[/]", highlight=False, soft_wrap=True)
        seconds = time.perf_counter() - begin
        self._stages.append({"stage": name, "seconds": round(seconds, 2)})
        self.console.print(f"[dim]  {seconds:.0f} s[/]", highlight=False)

    # ------------------------------------------------------------------ stages

    def record(self) -> TraceLibrary:
        """Serve contents through the runtime, keep their attention; the ledger compiles meanwhile."""
        from tqdm import tqdm

        c = self.config
        with self._stage("record", "Serve with the embedded MoE and record its attention") as note:
            compiling = start_precompile()
            note("the ledger is being compiled beside it (once on a machine, about two minutes)")
            model, _ = load_model("embedded")
            with tqdm(total=c.contents * len(c.kinds), desc="  serving", unit="request", leave=False) as bar:
                library = record_kinds(
                    model,
                    c.kinds,
                    c.contents,
                    c.seed,
                    prompt_range=c.prompt_tokens,
                    output_range=c.output_tokens,
                    provenance={"command": self.command, "model": "embedded", "seed": c.seed},
                    on_request=lambda: (bar.update(1), None)[1],
                )
            library.save(self.out / "traces.safetensors")
            self.summary["coverage"] = rows = coverage(library)
            self.console.print(tables.coverage(rows))  # type: ignore[arg-type]
            if compiling.wait() != 0:
                raise ValueError("the ledger could not be compiled: run python -m pikv_env.precompile for the reason")
        return library

    def headroom(self, suite: Suite) -> dict[str, Any]:
        """What there is to gain, before any learning."""
        c = self.config
        with self._stage("headroom", "Headroom before any learning") as note:
            found = headroom(suite, c.headroom_families, c.lookahead, note=note)
            self.summary["headroom"] = found["rows"]
            self.console.print(tables.headroom(found["rows"]))
            note(f"static_global is {found['static_global']}")
            write_json(self.out / "headroom.json", found)
        return found

    def train(self, library: TraceLibrary) -> TrainResult:
        """PPO on the trace environment."""
        config = replace(self.config.training, seed=self.config.seed, threads=self.config.threads)
        with self._stage("train", f"Train {config.learner.upper()} on {', '.join(config.env.families)}") as note:
            result = train(
                config,
                library,
                self.out / "train",
                tracking=self.config.track,
                existing="replace",
                command=self.command,
            )
            note(result.sentence())
            values = result.to_dict()
            self.summary["training"] = {k: values[k] for k in ("curve", "seconds", "steps_per_second")}
        return result

    def evaluate(self, suite: Suite, room: dict[str, Any], result: TrainResult) -> dict[str, Any]:
        """The learned policy and its rivals on the held-out family."""
        c = self.config
        with self._stage("evaluate", f"Evaluate on {c.held_out}, which was never trained on") as note:
            draft = export(result.run_dir, self.out / "draft", overwrite=True)
            found = evaluate(
                {"learned": str(draft)},
                suite,
                (c.held_out,),
                range(c.seeds),
                (c.pressure,),
                rivals=RIVALS,
                grid=c.lookahead.grid,
                headroom=room,
                meta={"command": self.command, "commit": commit(), "machine": machine()},
            )
            self.summary["evaluation"] = found
            write_json(self.out / "evaluation.json", found)
            self.console.print(tables.families(found))
            note(verdict(found).sentence)
            self.summary["timeline"] = self._timeline(suite, str(draft), found)
        return found

    def _timeline(self, suite: Suite, bundle: str, found: dict[str, Any]) -> dict[str, Any]:
        """One episode interval by interval, learned and best heuristic."""
        from pikv_runtime.policy import load_policy

        episode = [Episode(self.config.held_out, 0, self.config.pressure)]
        policies = {"learned": lambda: load_policy(bundle, guard=False)}
        runs = suite.run_all(policies, episode, timeline=True)["learned"]
        runs += suite.run(self._best_heuristic(found), episode, timeline=True)
        names = ("learned", verdict(found).baseline)
        return {
            "family": self.config.held_out,
            "runs": [run.timeline | {"policy": name} for run, name in zip(runs, names, strict=True) if run.timeline],
        }

    def _best_heuristic(self, found: dict[str, Any]) -> str:
        """Spec of the best deployable rival."""
        return found["meta"]["policies"][verdict(found).baseline]

    def export(self, result: TrainResult, found: dict[str, Any]) -> Path:
        """The bundle, verified, compiled and timed."""
        with self._stage("export", "Export the policy as a bundle, verify and compile it") as note:
            path = export(
                result.run_dir,
                self.out / "policy" / "quickstart-0.1",
                evaluation=found,
                command=self.command,
                overwrite=True,
            )
            shutil.rmtree(self.out / "draft")  # the same weights, without their evaluation
            section = shelf.describe(path)
            section["decision_us"]["sb3_predict"] = result.predict_us
            self.summary["policy"] = section
            self.console.print(tables.decisions(section))
            note(f"{section['golden_pairs']} golden pairs replayed, largest difference {section['golden_error']:.1e}")
            note(f"bundle: {path}")
        return path

    def live(self, library: TraceLibrary, bundle: Path) -> None:
        """Bundle and best heuristic in the real decode loop, over processes."""
        c, best = self.config, self._best_heuristic(self.summary["evaluation"])
        with self._stage("live", f"Serve {c.held_out} live on {c.ranks} ranks") as note:
            pool = live_pool(library, c.held_out, c.seed, c.ranks, c.live_load, c.live_horizon_s)
            name = verdict(self.summary["evaluation"]).baseline
            section, results = live_section(pool, {"learned": str(bundle), name: best}, c.pressure, note=note)
            self.summary["live"] = section
            self.console.print(tables.live(section))
            note(live_sentence(section))
            write_json(self.out / "live.json", {**section, "runs": {k: asdict(v) for k, v in results.items()}})

    def report(self) -> dict[str, Any]:
        """Summary, figures and page."""
        with self._stage("report", "Write the report"):
            self.summary["meta"] = self._meta()
            self.summary["verdict"] = [live_sentence(self.summary["live"])]
            figures = self.out / "figures"
            figures.mkdir(exist_ok=True)
            for name, figure in html.draw_all(self.summary).items():  # type: ignore[arg-type]
                save(figure, figures / f"{name}.svg")
            page = html.write_report(self.summary, self.out / "report.html")
        self.summary["meta"] = self._meta()
        write_json(self.out / "summary.json", self.summary)
        found = verdict(self.summary["evaluation"])
        self.console.print(f"\n[bold]{found.sentence}[/]", soft_wrap=True)
        self.console.print(f"report: {page}", soft_wrap=True, highlight=False)
        return self.summary

    def _meta(self) -> dict[str, Any]:
        return {
            "title": "PiKV quickstart",
            "date": date.today().isoformat(),
            "commit": commit(),
            "machine": machine(),
            "versions": {package: version(package) for package in PACKAGES},
            "stages": self._stages,
            "command": self.command,
        }


def live_sentence(section: dict[str, Any]) -> str:
    """What the live run showed, in words; one run each, so no claim beyond what was measured."""
    learned, rival = (row for row in section["rows"] if row["where"] == "live")
    change = learned["J"] / rival["J"] - 1
    word = "less" if change < 0 else "more"
    return (
        f"Live, one run each on {section['ranks']} ranks: learned J {learned['J']:.3f}, {rival['policy']} "
        f"{rival['J']:.3f}: {abs(change):.1%} {word}."
    )
