"""`pikv convert`: traces of other formats in the Mooncake line format."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Bring a trace to the Mooncake line format, whole or a window of it, and print its statistics.

    What the source does not say is drawn by the seed: requests of ServeGen's clients, the starts of Weka's sessions,
    and, if asked for, tenants with a common prefix where there are no hashes.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """File; or folder, of Weka's sessions or ServeGen's clients."""
    format: Annotated[Literal["mooncake", "azure", "weka", "servegen"], tyro.conf.arg(name="from")]
    """Format of the source."""
    out: Path
    """Trace to write; packed if its name ends in .gz."""
    seed: int = 0
    """Of everything that is drawn."""
    start_s: float = 0.0
    """Begin of the window, seconds after the source's first moment."""
    duration_s: float | None = None
    """Length of the window; by default to the end."""
    max_requests: int | None = None
    """Take only so many requests, the first of the window."""
    block_tokens: int = 512
    """Tokens of one hash id."""
    tenants: int = 0
    """azure, servegen: so many tenants with a common prefix; 0: all prompts differ."""
    tenant_tokens: int = 1024
    """Length of that prefix."""
    tenant_zipf: float = 1.0
    """Exponent of the tenants' sizes."""
    session_gap_s: float = 30.0
    """weka: mean time between the starts of two sessions."""
    rate_per_s: float | None = None
    """servegen: mean rate over the window; by default the source's own."""

    def run(self) -> dict[str, Any]:
        """Write the trace, print and return its statistics."""
        from pikv_agents.report import tables
        from pikv_env.workloads.converters import ConvertOptions, convert
        from pikv_env.workloads.mooncake import write_records
        from pikv_env.workloads.statistics import describe_trace

        given = {f.name: getattr(self, f.name) for f in fields(ConvertOptions)}
        if self.out.exists() and self.source.exists() and self.out.samefile(self.source):
            raise ValueError(f"--out {self.out} is the source itself, which would be lost: name another file")
        records = convert(self.format, self.source, ConvertOptions(**given))
        statistics = describe_trace(records, self.block_tokens)
        write_records(self.out, records)
        console = tables.console()
        console.print(f"{self.out}: {len(records)} requests")
        console.print(tables.plain_statistics(statistics))
        return {"source": str(self.source), "format": self.format, "out": str(self.out), "options": given,
                "statistics": statistics}  # fmt: skip
