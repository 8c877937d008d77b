"""Azure LLM inference traces (Splitwise, ISCA 2024): CSV of TIMESTAMP, ContextTokens, GeneratedTokens.

They hold no prefix hashes: every prompt is its request's own, unless the options name tenants.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pikv_env.workloads.converters.base import CONVERTERS, ConversionError, ConvertOptions, invented_ids, numbered_lines
from pikv_env.workloads.mooncake import MooncakeRecord

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(source: Path, options: ConvertOptions) -> Iterator[MooncakeRecord]:
    """Records of a CSV file, the first stamp being 0."""
    lines = numbered_lines(source)
    header = next(csv.reader([next(lines, (1, ""))[1].lstrip("\ufeff")]), [])
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ConversionError(f"{source}:1: no column {missing[0]}; the columns are {header}")
    places = [header.index(name) for name in COLUMNS]
    rows = [_row(line, f"{source}:{number}", places) for number, line in lines if line.strip()]
    if not rows:
        raise ConversionError(f"{source}: holds no requests")
    start = min(stamp for stamp, _, _ in rows)
    ids = invented_ids(np.array([prompt for _, prompt, _ in rows]), options)
    for (stamp, prompt, output), blocks in zip(rows, ids, strict=True):
        yield MooncakeRecord((stamp - start) * 1000, prompt, output, blocks)


def _row(line: str, where: str, places: list[int]) -> tuple[float, int, int]:
    """Seconds, prompt tokens and output tokens of one line."""
    cells = next(csv.reader([line]))
    if len(cells) <= max(places):
        raise ConversionError(f"{where}: {len(cells)} cells, expected {max(places) + 1}")
    stamp, prompt, output = (cells[place].strip() for place in places)
    return _seconds(stamp, where), _count(prompt, COLUMNS[1], 1, where), _count(output, COLUMNS[2], 0, where)


def _seconds(text: str, where: str) -> float:
    """Seconds of a stamp with any digits after the second, with a zone or without; a zone needs no fraction."""
    try:
        moment, _, rest = text.partition(".")
        digits = len(rest) - len(rest.lstrip("0123456789"))
        fraction = float(f"0.{rest[:digits]}") if digits else 0.0
        parsed = datetime.fromisoformat(moment + rest[digits:])
        # Without a zone all stamps are taken as of one: only differences count.
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() + fraction
    except ValueError as error:
        raise ConversionError(f"{where}: TIMESTAMP={text[:60]!r} is no date and time") from error


def _count(text: str, name: str, least: int, where: str) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) < 2**31:
        raise ConversionError(f"{where}: {name}={text[:60]!r} must be an integer of at least {least}")
    return int(text)


CONVERTERS.add("azure", read)
