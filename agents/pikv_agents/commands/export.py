"""`pikv export`: a training run as a policy bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write the best checkpoint of a run as a bundle: manifest, weights, golden pairs, results and card.

    A bundle holds no code and no pickles, and is loaded back with every check before it gets its name.
    """

    run_dir: Path
    """Folder of `pikv train`."""
    out: Path
    """Folder of the bundle, by custom NAME-MAJOR.MINOR."""
    version: str = "0.1"
    """major.minor: major with the contract, minor with the weights."""
    evaluation: Path | None = None
    """JSON of `pikv evaluate`, for the card."""
    overwrite: bool = False
    """Replace a bundle that is there."""

    def run(self) -> dict[str, Any]:
        """Write, verify, say where it is."""
        from pikv_agents.commands.options import command_line
        from pikv_agents.exporting import export
        from pikv_agents.report import tables
        from pikv_runtime.policy.shelf import describe

        known = None if self.evaluation is None else json.loads(self.evaluation.read_text(encoding="utf-8"))
        path = export(
            self.run_dir, self.out, version=self.version, evaluation=known, command=command_line(),
            overwrite=self.overwrite,
        )  # fmt: skip
        found = describe(path)
        text = f"bundle: {path} ({found['golden_pairs']} golden pairs reproduced, error {found['golden_error']:.1e})"
        tables.console().print(text, soft_wrap=True)
        return found
