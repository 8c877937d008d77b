"""Episode records played again, as `pikv evaluate --replay` shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pikv_env.episode_record import EpisodeRecord, RecordError
from pikv_env.replay import Replayer
from pikv_env.traces.library import TraceLibrary


def replay_files(
    paths: Sequence[Path], library: TraceLibrary, progress: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    """Play each record; rows of `file`, `verdict` (identical, differs or refused), `reason`, and the numbers.

    Raises:
        FileNotFoundError: there is no such file.
    """
    replayer, rows = Replayer(library), []
    for path in paths:
        rows.append({"file": str(path), **_row(path, replayer)})
        if progress:
            progress(1)
    return rows


def _row(path: Path, replayer: Replayer) -> dict[str, Any]:
    try:
        record = EpisodeRecord.load(path)
        found = replayer.replay(record)
    except RecordError as error:
        return {"verdict": "refused", "reason": str(error).removeprefix(f"{path}: ")}
    episode = record.header["episode"]
    return {
        "verdict": "identical" if found.identical else "differs",
        "reason": found.difference,
        "policy": record.header["policy"],
        "family": episode["family"],
        "pressure": episode["pressure"],
        "version": record.header["version"],
        "intervals": found.intervals,
        "recorded": found.recorded,
        "replayed": found.replayed,
    }


def table(rows: Sequence[dict[str, Any]]) -> Any:
    """Recorded and replayed J of every file, and the first difference."""
    from pikv_agents.report.tables import plain_table

    shown = plain_table(
        "Replays", ("file", "policy", "family"), ("pressure", "intervals", "recorded J", "replayed J", "verdict")
    )
    for row in rows:
        name = Path(row["file"]).name
        if row["verdict"] == "refused":
            shown.add_row(name, "–", "–", "–", "–", "–", "–", "refused")
            continue
        J = [f"{row[key]['J']:.9f}" for key in ("recorded", "replayed")]
        shown.add_row(
            name, row["policy"], row["family"], f"{row['pressure']:.3g}", str(row["intervals"]), *J, row["verdict"]
        )
    return shown


def check(rows: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError with the first reason unless every replay is identical."""
    wrong = [row for row in rows if row["verdict"] != "identical"]
    if wrong:
        first = wrong[0]
        count = f"{len(wrong)} of {len(rows)} records: " if len(rows) > 1 else ""
        raise ValueError(f"{count}{first['file']} {first['verdict']}: {first['reason']}")
