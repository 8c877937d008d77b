"""Replay of traces in the Mooncake line format: their times alone (`Replay`), or also who shares what (`Trace`).

A trace is a file, or `builtin:NAME` for one of those that come with the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pikv_env.workloads.arrivals import ARRIVALS, Rng, Times, check_rate
from pikv_env.workloads.mooncake import BLOCK_TOKENS, MooncakeRecord, read_mooncake
from pikv_runtime.registry import UnknownNameError

BUILTIN = "builtin:"
BUILTIN_FOLDER = Path(__file__).parents[1] / "data" / "workloads"
_SUFFIX = ".jsonl.gz"


class ReplayedArrivals(NamedTuple):
    """Times (R,), and of each arrival the record it replays and how often the file had been through before; (R,)."""

    times: Times
    record: NDArray[np.int64]
    lap: NDArray[np.int64]


def builtin_traces() -> tuple[str, ...]:
    """Names of the traces that come with the package."""
    return tuple(sorted(path.name.removesuffix(_SUFFIX) for path in BUILTIN_FOLDER.glob(f"*{_SUFFIX}")))


def trace_path(path: str | Path) -> Path:
    """The file that `path` or `builtin:NAME` means; raises UnknownNameError for a name that is not built in."""
    if not str(path).startswith(BUILTIN):
        return Path(path)
    name = str(path).removeprefix(BUILTIN)
    if name not in builtin_traces():
        raise UnknownNameError("built-in trace", name, list(builtin_traces()))
    return BUILTIN_FOLDER / f"{name}{_SUFFIX}"


@dataclass(frozen=True)
class Replay:
    """Time stamps of a trace, scaled to the asked rate, from a random place in the file.

    A file shorter than the horizon is repeated.
    """

    path: str | Path = f"{BUILTIN}conversation"
    jitter_ms: float = 3000.0
    """Uniform jitter: public stamps are quantised to 3 s, and queues of such bunches would be an artefact."""

    def __post_init__(self) -> None:
        if not str(self.path) or self.jitter_ms < 0:
            raise ValueError(f"path={str(self.path)!r} must name a trace file, jitter_ms={self.jitter_ms} be >= 0")

    def __call__(self, rng: Rng, rate_per_s: float, horizon_s: float) -> Times:
        """Draw the times of one episode."""
        return self.draw(rng, rate_per_s, horizon_s).times

    def records(self) -> tuple[MooncakeRecord, ...]:
        """The trace in the order of its file; read once for each version of the file."""
        return _records(trace_path(self.path), None)

    def draw(self, rng: Rng, rate_per_s: float, horizon_s: float) -> ReplayedArrivals:
        """Draw times with the records that they replay."""
        check_rate(rate_per_s, horizon_s)
        stamps = np.array([record.timestamp_ms for record in self.records()], np.float64)
        stamps = stamps - stamps.min() + rng.uniform(0, self.jitter_ms, len(stamps))
        order, count = np.argsort(stamps, kind="stable"), len(stamps)
        span = max(float(stamps.max()) * (count + 1) / count, 1e-9)
        unit = stamps[order] / span * count  # one arrival per unit of time on average
        need = rate_per_s * horizon_s
        laps = np.arange(int(need / count) + 2)
        unit = (unit + laps[:, None] * count).ravel() - rng.uniform(0, count)
        keep = (unit >= 0) & (unit < need)
        times = np.minimum(unit[keep] / rate_per_s, np.nextafter(horizon_s, 0))
        return ReplayedArrivals(times, np.tile(order, len(laps))[keep], np.repeat(laps, count)[keep])


@dataclass(frozen=True)
class Trace(Replay):
    """A trace with its times, lengths and shared blocks: the arrivals of the sharing rule `trace`."""

    token_scale: float = 32.0
    """Trace tokens that one workload token stands for."""
    block_tokens: int = BLOCK_TOKENS
    """Trace tokens of one hash id."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.token_scale > 0 or self.block_tokens < 1:
            raise ValueError(f"token_scale={self.token_scale} and block_tokens={self.block_tokens}: must be positive")

    def records(self) -> tuple[MooncakeRecord, ...]:
        """The trace; raises MooncakeError where a prompt's hash ids are not its blocks."""
        return _records(trace_path(self.path), self.block_tokens)


def _records(path: Path, block_tokens: int | None) -> tuple[MooncakeRecord, ...]:
    return _read(path, path.stat().st_mtime_ns if path.exists() else 0, block_tokens)


@lru_cache(maxsize=8)
def _read(path: Path, modified_ns: int, block_tokens: int | None) -> tuple[MooncakeRecord, ...]:
    return tuple(read_mooncake(path, block_tokens))


ARRIVALS.add("replay", Replay)
ARRIVALS.add("trace", Trace)
