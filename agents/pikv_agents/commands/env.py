"""`pikv env`: the terms of an environment, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pikv_agents.commands.base import Command

if TYPE_CHECKING:
    from pikv_env.terms import Term


@dataclass(frozen=True, kw_only=True)
class Env(Command):
    """Print what is observed, what may be done, what is paid and what is constrained: index, unit, range, meaning.

    It is the same for `PiKV/Trace-v0` and `PiKV/Runtime-v0`. Everything comes from the contract.
    """

    control: Annotated[str, tyro.conf.Positional] = "coef"
    """Control view: coef, box or discrete."""
    library: Path | None = None
    """Trace library, which says how many groups there are; by default the built-in one."""
    fidelity_floor: float | None = None
    """Least F of an episode: adds its costs."""
    slo: float | None = None
    """Least share of requests within their objectives: adds its costs."""

    def run(self) -> dict[str, Any]:
        """Print the tables and return them."""
        from pikv_agents.commands.options import open_library
        from pikv_agents.report.tables import console
        from pikv_env.builtin import make_config
        from pikv_env.terms import describe

        config = make_config(control=self.control, fidelity_floor=self.fidelity_floor, slo=self.slo)
        library = open_library(self.library)
        groups = library.experts * min(config.runtime.layer_groups, library.layers)
        found = describe(config, groups)
        out = console()
        for title, terms in found.sections().items():
            out.print(_table(f"{title} ({len(terms)})", terms))
        return found.to_dict()


def _table(title: str, terms: tuple[Term, ...]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("#", justify="right")
    for name in ("name", "unit"):
        table.add_column(name, no_wrap=True)
    table.add_column("range", no_wrap=True, justify="right")
    table.add_column("meaning", overflow="fold")
    for term in terms:
        table.add_row(str(term.index), term.name, term.unit, term.range, term.meaning)
    return table
