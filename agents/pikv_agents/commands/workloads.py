"""`pikv workloads`: the families, one drawn workload, and the built-in traces made anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import EnvironmentOptions

if TYPE_CHECKING:
    from pikv_env.workloads import Family


@dataclass(frozen=True, kw_only=True)
class Workloads(Command, EnvironmentOptions):
    """List workload families, draw and describe one, or generate a trace from a session model.

    `list` prints all families, `suites` the suites that are played on; `show FAMILY` draws one workload at a share of
    capacity and describes it (the options of the machine say of whose); `generate MODEL --out FILE` writes a trace in
    the Mooncake line format, as the built-in ones were made.
    """

    action: Annotated[Literal["list", "suites", "show", "generate"], tyro.conf.Positional] = "list"
    """What to do."""
    name: Annotated[str, tyro.conf.Positional] = ""
    """Family to show (or a file of your own: .toml, .json, trace:FILE.jsonl), or session model to generate from."""
    seed: int = 0
    """show: number of the episode, which names one workload together with the family's own seed; generate: seed."""
    load: float = 0.5
    """show: share offered of the machine's time, or on GPU profiles of its slots."""
    horizon_s: float = 1800.0
    """show: seconds of arrivals."""
    figure: Path | None = None
    """show: write a figure of arrivals and reuse (png, svg or pdf)."""
    out: Path | None = None
    """generate: trace to write; packed if its name ends in .gz."""

    def run(self) -> dict[str, Any]:
        """Print and return what was asked for."""
        if self.action == "list":
            return self._list()
        if self.action == "suites":
            return _suites()
        if not self.name:
            raise ValueError(f"{self.action} needs a name: pikv workloads {self.action} NAME")
        return self._show() if self.action == "show" else self._generate()

    def _list(self) -> dict[str, Any]:
        from pikv_agents.report import tables
        from pikv_env.workloads import FAMILIES
        from pikv_env.workloads.families import SPLITS

        rows = sorted((row(FAMILIES[name]) for name in FAMILIES), key=lambda r: (SPLITS.index(r["split"]), r["id"]))
        table = tables.plain_table(
            "Workload families", ("family", "split", "contents", "arrivals", "sharing", "what"), ()
        )
        for position, one in enumerate(rows):
            last = position + 1 == len(rows) or rows[position + 1]["split"] != one["split"]
            arrivals = one["arrivals"]["process"]
            table.add_row(one["id"], one["split"], ", ".join(one["contents"]), arrivals, one["sharing"],
                          one["description"], end_section=last)  # fmt: skip
        console = tables.console()
        console.print(table)
        for source, licence in dict.fromkeys((r["source"], r["licence"]) for r in rows):
            names = [r["id"] for r in rows if (r["source"], r["licence"]) == (source, licence)]
            console.print(f"[bold]source[/] {source} ({licence}): {', '.join(names)}")
        return {"families": rows}

    def _show(self) -> dict[str, Any]:
        from pikv_agents.commands.options import open_library
        from pikv_agents.report import tables, workload_figure
        from pikv_agents.report.style import save
        from pikv_env.capacity import Capacity
        from pikv_env.pool import folding_of
        from pikv_env.workloads import FAMILIES, describe, make_workload
        from pikv_env.workloads.own import named_families

        (name,) = named_families((self.name,))
        family, library = FAMILIES[name], open_library(self.library)
        config = self.config()
        machine = {key: getattr(config, key) for key in ("profile", "geometry", "ranks", "token_scale")}
        service_s = Capacity.of(config, folding_of(library, config)).service_s
        workload = make_workload(family, library, self.seed, self.horizon_s, self.load, service_s)
        statistics = describe(workload, library.page_tokens)
        told, console = row(family), tables.console()
        console.print(f"[bold]{family.id}[/] ({family.split}): {family.description}")
        for name in ("contents", "arrivals", "sharing", "classes", "source", "licence", "seed", "fingerprint"):
            console.print(f"  {name:<12}{_text(told[name])}")
        title = f"episode {self.seed}, load {self.load:g}, {self.horizon_s:g} s on {config.profile}, {config.geometry}"
        console.print(f"\n{title}")
        console.print(tables.plain_statistics(statistics))
        if workload.requests:
            for label, line in workload_figure.sparklines(workload, library.page_tokens).items():
                console.print(f"{label:<22}{line}")
        if self.figure:
            if not workload.requests:
                raise ValueError(f"figure={str(self.figure)!r}: no request within {self.horizon_s:g} s to draw")
            console.print(f"figure: {save(workload_figure.draw(workload, library.page_tokens), self.figure)}")
        return told | {"episode": self.seed, "load": self.load, "horizon_s": self.horizon_s,
                       **machine, "statistics": statistics}  # fmt: skip

    def _generate(self) -> dict[str, Any]:
        from pikv_agents.report import tables
        from pikv_env.workloads.mooncake import write_records
        from pikv_env.workloads.statistics import describe_trace
        from pikv_env.workloads.trace_models import TRACE_MODELS

        model = TRACE_MODELS[self.name]
        if self.out is None:
            raise ValueError(f"generate needs a file: pikv workloads generate {self.name} --out FILE")
        records = model.records(self.seed)
        write_records(self.out, records)
        statistics = describe_trace(records, model.block_tokens)
        title = f"{self.out}: {model.description}; blocks of {model.block_tokens} tokens"
        console = tables.console()
        console.print(title)
        console.print(tables.plain_statistics(statistics))
        return {"model": self.name, "seed": self.seed, "out": str(self.out), "block_tokens": model.block_tokens,
                "statistics": statistics}  # fmt: skip


def _suites() -> dict[str, Any]:
    """Print the suites and return them."""
    from dataclasses import asdict

    from pikv_agents.report import tables
    from pikv_env.suites import SUITES

    specs = [SUITES[name] for name in SUITES]
    left, right = ("suite", "profile", "geometry", "what"), ("scale", "ranks", "slots", "host", "pressures")
    table = tables.plain_table("Suites", left, right)
    for one in specs:
        pressures = " ".join(f"{p:g}" for p in one.pressures)
        numbers = (str(one.token_scale), str(one.ranks), str(one.slots), f"{one.host:g}", pressures)
        table.add_row(one.id, one.profile, one.geometry, one.description, *numbers)
    tables.console().print(table)
    return {"suites": [asdict(one) for one in specs]}


def row(family: Family) -> dict[str, Any]:
    """What the registry holds of a family, as JSON values."""
    from dataclasses import asdict

    from pikv_env.workloads.fingerprint import fingerprint

    return {
        "id": family.id,
        "split": family.split,
        "description": family.description,
        "contents": list(family.kinds),
        "arrivals": _process(family.arrivals),
        "sharing": family.sharing,
        "recorded_text": family.recorded_text,
        "classes": [asdict(c) for c in family.classes],
        "source": family.source,
        "licence": family.licence,
        "seed": family.seed,
        "expected": {name: list(span) for name, span in family.expected.items()},
        "fingerprint": fingerprint(family),
    }


def _process(arrivals: Any) -> dict[str, Any]:
    """Name and parameters of an arrival process, and of one inside it."""
    from dataclasses import fields, is_dataclass

    from pikv_env.workloads import ARRIVALS

    name = next((name for name in ARRIVALS if ARRIVALS[name] is type(arrivals)), type(arrivals).__name__)
    told = {f.name: getattr(arrivals, f.name) for f in fields(arrivals)} if is_dataclass(arrivals) else {}
    plain = {k: str(v) if isinstance(v, Path) else _process(v) if is_dataclass(v) else v for k, v in told.items()}
    return {"process": name, **plain}


def _text(value: Any) -> str:
    """A value of a row on one line."""
    if isinstance(value, dict):
        rest = ", ".join(f"{k} {_text(v)}" for k, v in value.items() if k != "process")
        return f"{value['process']}" + (f" ({rest})" if rest else "")
    if isinstance(value, list):
        return ", ".join(_class(v) if isinstance(v, dict) else str(v) for v in value)
    return str(value)


def _class(told: dict[str, Any]) -> str:
    return (
        f"{told['name']} (weight {told['weight']:g}, TTFT {told['slo_ttft_s']:g} s, TPOT {told['slo_tpot_s']:g} s, "
        f"fidelity {told['fidelity_weight']:g})"
    )
