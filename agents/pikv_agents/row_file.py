"""Rows of a long study in a file of JSON lines, written as they are measured: a run that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RowFile:
    """The file's first line says what the rows are made with; a file of another making is refused.

    Args:
        path: The file; made if there is none. A last line that was cut off is dropped.
        about: JSON values that must be the same for rows to belong together.

    Raises:
        ValueError: The file holds something else, or rows made otherwise.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        about = json.loads(json.dumps(about))
        lines = self._whole_lines()
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"about": about}) + "\n", encoding="utf-8")
            return
        found = lines[0].get("about") if isinstance(lines[0], dict) else None
        if not isinstance(found, dict):
            raise ValueError(f"{str(path)!r}: not a file of rows, its first line has no 'about'")
        for name in sorted(set(found) | set(about)):
            if found.get(name) != about.get(name):
                raise ValueError(
                    f"{str(path)!r}: its rows are made with {name}={found.get(name)!r}, asked is {about.get(name)!r}"
                )
        self.rows = lines[1:]

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        self.rows.append(json.loads(json.dumps(row)))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The file's lines as JSON; the file is shortened to them."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if text and not whole:
            raise ValueError(f"{str(self.path)!r}: not a file of rows, it has no whole line")
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ValueError(f"{str(self.path)!r}: not a file of rows ({error})") from None
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")
        return lines
