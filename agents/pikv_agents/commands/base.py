"""What every `pikv` subcommand is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options as fields with a docstring under each; the class docstring is the command's help."""

    json: Path | None = None
    """Write the result as one JSON object to this file."""

    def run(self) -> dict[str, Any] | None:
        """Do it, printing for people; returns the object that `--json` writes."""
        raise NotImplementedError
