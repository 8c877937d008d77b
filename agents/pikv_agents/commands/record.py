"""`pikv record`: serve contents exactly and keep what attention did."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Record(Command, ModelOptions):
    """Serve contents with a real model, exact and native, and write their attention traces as one library.

    The library is what `library=` and `--library` take; a minute of one core records about 150 contents.
    """

    out: Path = Path("traces.safetensors")
    """Where the library goes."""
    kinds: tuple[str, ...] = ()
    """Content kinds; by default all that the workload families use."""
    contents: int = 12
    """Contents of each kind."""
    prompt_tokens: tuple[int, int] = (128, 900)
    """Shortest and longest prompt."""
    output_tokens: tuple[int, int] = (16, 128)
    """Shortest and longest output."""
    seed: int = 0
    """Contents are drawn from it."""

    def run(self) -> dict[str, Any]:
        """Record, write, and say what was recorded."""
        from pikv_agents.report import tables

        library, seconds = record_library(self)
        library.save(self.out)
        size = self.out.stat().st_size
        decoded, megabytes = int(library.output_tokens.sum()), size / 1e6
        tables.console().print(
            f"recorded {len(library)} contents of {len(library.families)} kinds ({decoded:,} tokens decoded) "
            f"in {seconds:.1f} s: {self.out} ({megabytes:.1f} MB)",
            soft_wrap=True,
        )
        return {
            "path": str(self.out),
            "bytes": size,
            "seconds": seconds,
            "contents": len(library),
            "kinds": list(library.families),
            "prompt_tokens": int(library.prompt_tokens.sum()),
            "output_tokens": int(library.output_tokens.sum()),
            "model": library.model,
            "provenance": dict(library.provenance),
        }


def record_library(given: Record) -> tuple[Any, float]:
    """The recorded library, and the seconds that serving took; shows progress."""
    import torch
    from tqdm import tqdm

    from pikv_agents.commands.options import command_line
    from pikv_env.traces.recorder import DEFAULT_KINDS, record_kinds

    kinds = given.kinds or DEFAULT_KINDS
    torch.set_num_threads(1)
    model = given.load_model()
    begin = time.perf_counter()
    with tqdm(total=given.contents * len(kinds), desc="recording", unit="request", leave=False) as bar:
        library = record_kinds(
            model,
            kinds,
            given.contents,
            given.seed,
            prompt_range=given.prompt_tokens,
            output_range=given.output_tokens,
            provenance={"command": command_line(), "model": given.model, "seed": given.seed},
            on_request=lambda: (bar.update(1), None)[1],
        )
    return library, time.perf_counter() - begin
