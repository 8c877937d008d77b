"""`EpisodeRecord`: one episode of the trace environment, written so that it can be played again to the same numbers.

A file is a ZIP archive: `record.json` says what was played and what it came to, and `.npy` members hold the controls
and charges of every interval. Nothing is pickled, equal episodes give equal bytes, and every member has a checksum.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.batch import TraceBatch
from pikv_env.episode import episode_info
from pikv_env.fingerprints import digest, library_fingerprint, workload_fingerprint
from pikv_env.whole_file import write_whole
from pikv_runtime import __version__
from pikv_runtime.contract import CONTRACT_HASH, GLOBAL_CONTROLS, GROUP_CONTROLS
from pikv_runtime.objective import OBJECTIVE_VERSION

FORMAT = "pikv-episode-record/1"
MOST_BYTES = 1 << 28
"""Largest member that is read: a small file must not unpack into all memory."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ARRAYS = {
    "control_groups": (np.float32, 3),
    "control_globals": (np.float32, 2),
    "parts": (np.float64, 2),
    "costs": (np.float64, 2),
}


class RecordError(ValueError):
    """A record that cannot be read, or cannot be played here; the message says why."""


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode. T intervals, N control groups; arrays are what was legal and in force, not what was asked."""

    header: dict[str, Any]
    """What was played, see `EpisodeRecorder.record`."""
    control_groups: NDArray[np.float32] = field(repr=False)
    """(T, N, 3)."""
    control_globals: NDArray[np.float32] = field(repr=False)
    """(T, 17)."""
    parts: NDArray[np.float64] = field(repr=False)
    """(T, 3) charges: latency, memory, loss, before the λ's."""
    costs: NDArray[np.float64] = field(repr=False)
    """(T, 2) costs beside the reward, by constraint; 0 for those that are not set."""

    @property
    def final(self) -> dict[str, Any]:
        """J, its parts, costs and counters at the end."""
        return dict(self.header["final"])

    def save(self, path: str | Path) -> None:
        """Write the file, atomically."""
        write_whole(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file's content."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            text = json.dumps({"format": FORMAT, **self.header}, indent=1, allow_nan=False)
            archive.writestr(zipfile.ZipInfo("record.json", _EPOCH), text, zipfile.ZIP_DEFLATED)
            for name in _ARRAYS:
                member = io.BytesIO()
                np.lib.format.write_array(member, np.ascontiguousarray(getattr(self, name)), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), member.getvalue(), zipfile.ZIP_DEFLATED)
        return out.getvalue()

    @classmethod
    def load(cls, path: str | Path) -> EpisodeRecord:
        """Read a file.

        Raises:
            FileNotFoundError: there is none.
            RecordError: it is cut, corrupt, of another kind, or of another contract or objective.
        """
        data = Path(path).read_bytes()
        try:
            header, arrays = _unpack(data)
            _check_header(header)
            return cls(header, **arrays)
        except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise RecordError(f"{path}: not a sound episode record ({reason})") from None


def _unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.file_size > MOST_BYTES:
                raise ValueError(f"{info.filename} has {info.file_size} bytes, at most {MOST_BYTES} are read")
        header = json.loads(archive.read("record.json"))
        if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        arrays = {}
        for name, (dtype, ndim) in _ARRAYS.items():
            array = np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
            if array.dtype != dtype or array.ndim != ndim:
                raise ValueError(f"{name} is {array.dtype} of {array.ndim} axes")
            arrays[name] = array
    _check_shapes(arrays)
    return header, arrays


def _check_shapes(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse arrays that do not fit each other, or the contract's columns."""
    groups = arrays["control_groups"]
    steps, count = groups.shape[:2]
    wanted = {
        "control_groups": (steps, count, len(GROUP_CONTROLS)),
        "control_globals": (steps, len(GLOBAL_CONTROLS)),
        "parts": (steps, 3),
        "costs": (steps, 2),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")


def _check_header(header: Mapping[str, Any]) -> None:
    """Refuse another contract or objective: the numbers would mean something else."""
    for name, here in (("contract", CONTRACT_HASH), ("objective_version", OBJECTIVE_VERSION)):
        if header[name] != here:
            raise ValueError(f"it is of {name.replace('_', ' ')} {header[name]!r}, this is {here!r}")
    for name in ("env", "pool_env", "pool_seed", "episode", "library", "workload_fingerprint", "prices", "final"):
        header[name]


class EpisodeRecorder:
    """Collects one lane's episode: make it after `reset`, `add` after every step, `record` at the end."""

    def __init__(self, batch: TraceBatch, lane: int = 0, policy: str = "") -> None:
        if batch.elapsed[lane]:
            raise ValueError(f"lane {lane} is {batch.elapsed[lane]} intervals into its episode: record from reset on")
        self.batch, self.lane, self.policy = batch, lane, policy
        self._rows: dict[str, list[NDArray[Any]]] = {name: [] for name in _ARRAYS}

    def add(self) -> None:
        """Keep the interval just ended."""
        for name, rows in self._rows.items():
            rows.append(getattr(self.batch, name)[self.lane].copy())

    def record(self) -> EpisodeRecord:
        """The episode so far; final numbers are those of now.

        The header holds `version`, `contract`, `objective_version`, `policy`; `env` (the configuration); `pool_env`,
        `pool_seed` and `library` (fingerprint), which make the pool; `episode` (workload number, family, workload
        seed, pressure, lambdas, cap_bytes); `workload_fingerprint`, `prices` (fingerprint); and `final`.
        """
        batch, i = self.batch, self.lane
        info, prepared = episode_info(batch, i), batch.prepared(i)
        header = {
            "version": __version__,
            "contract": CONTRACT_HASH,
            "objective_version": OBJECTIVE_VERSION,
            "policy": self.policy,
            "env": asdict(batch.config),
            "pool_env": asdict(batch.pool.config),
            "pool_seed": batch.pool.seed,
            "library": library_fingerprint(batch.pool.library),
            "episode": {
                "workload": info["workload"],
                "family": info["family"],
                "workload_seed": prepared.workload.seed,
                "pressure": info["pressure"],
                "lambdas": batch.state.lambdas[i].tolist(),
                "cap_bytes": info["cap_bytes"],
                "block_rule": batch.orders[i].block.name,
                "page_order": batch.orders[i].page,
            },
            "workload_fingerprint": workload_fingerprint(prepared.workload),
            "prices": digest([np.asarray(batch.pool.prices)]),
            "final": info["episode_cost"],
        }
        arrays: dict[str, Any] = {name: np.array(rows, _ARRAYS[name][0]) for name, rows in self._rows.items()}
        return EpisodeRecord(header, **arrays)
