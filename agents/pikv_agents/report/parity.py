"""Terminal tables of `pikv parity`: trace and live side by side, and which targets are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from pikv_agents.report.tables import number, plain_table
from pikv_env.level_b import Row
from pikv_env.parity_verdict import policy_errors


def policies(rows: Sequence[Row], title: str) -> Table:
    """A line a policy: live means, trace means, and the signed errors."""
    right = ("J live", "trace", "L live", "trace", "±", "ΔL", "hits", "trace", "Δbytes", "loss", "trace")
    table = plain_table(title, ("policy",), right)
    table.caption = "± is the spread of the live repeats, Δ trace over live; loss is 1 − F"
    for row in rows:
        live, trace = ({k: float(np.mean(v)) for k, v in source.items()} for source in (row.live, row.trace))
        errors, latency = policy_errors(row), row.live["latency"]
        table.add_row(
            row.policy,
            number(live["J"], 2),
            number(trace["J"], 2),
            number(live["latency"], 2),
            number(trace["latency"], 2),
            f"{np.ptp(latency) / np.mean(latency):.0%}",
            f"{errors['latency_median_ape']:+.0%}",
            f"{live['hit_rate']:.1%}",
            f"{trace['hit_rate']:.1%}",
            f"{errors['bytes_error']:+.1%}",
            number(live["loss"]),
            number(trace["loss"]),
        )
    return table


def targets(summary: Mapping[str, Any], wanted: Mapping[str, float]) -> Table:
    """A line a target: what was found, what is wanted, who is worst, and the verdict."""
    table = plain_table("", ("quantity",), ("found", "target", "bias", "within", "worst policy's", "verdict"))
    table.title = None
    for name, target in wanted.items():
        tau = name == "kendall_tau"
        bound = f"{'≥' if tau else '≤'} {target:g}"
        if name == "latency_median_ape":
            bound += f" or spread {summary['run_to_run_spread']:.3f}"
        within = f"{summary['pairs']} of {summary['pairs_all']} pairs"
        if not tau:
            within = f"{summary['within'][name]} of {summary['policies']}"
        table.add_row(
            name,
            number(summary[name]),
            bound,
            "" if tau else f"{summary['bias'][name]:+.3f}",
            within,
            "" if tau else f"{summary['worst'][name]['error']:+.3f}",
            _verdict(summary["verdicts"][name]),
        )
    table.add_row(
        "replays of the logs", "", "identical", "", "", "", _verdict(summary["verdicts"]["replays_identical"])
    )
    return table


def outcomes(logged: Mapping[str, float], replayed: Mapping[str, float], modelled: Mapping[str, float]) -> Table:
    """What a log's run came to: as served, replayed with its own times, and with modelled ones."""
    table = plain_table("", ("quantity",), ("live", "replayed", "modelled times"))
    table.title = None
    for name, value in logged.items():
        table.add_row(name, *(f"{x:,.4g}" for x in (value, replayed[name], modelled[name])))
    return table


def _verdict(met: bool) -> str:
    return "met" if met else "[bold red]not met[/]"
