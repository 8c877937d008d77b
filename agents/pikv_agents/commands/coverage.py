"""`pikv coverage`: how much attention mass each router's read set captures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Coverage(Command):
    """Share of far attention mass on the pages that a router would read, at 10 and 25 % of them, by layer.

    `random` is the expectation of random pages, `best` knows the mass. Far: outside sinks and recent window.
    """

    library: Path | None = None
    """Trace library; by default the built-in one."""
    kinds: tuple[str, ...] = ()
    """Content kinds to count; by default all of the library."""
    least_far: int = 8
    """Observations with fewer far pages are left out: nothing can be chosen among them."""

    def run(self) -> dict[str, Any]:
        """Print the table, return its rows."""

        from pikv_agents.commands.options import open_library
        from pikv_agents.report import tables
        from pikv_env.coverage import coverage
        from pikv_runtime.registry import UnknownNameError

        library = open_library(self.library)
        for kind in self.kinds:
            if kind not in library.families:
                raise UnknownNameError("kind", kind, list(library.families))
        rows = coverage(library.subset(self.kinds) if self.kinds else library, least_far=self.least_far)
        tables.console().print(tables.coverage(rows))  # type: ignore[arg-type]
        return {"rows": rows, "contents": len(library), "kinds": list(self.kinds or library.families)}
