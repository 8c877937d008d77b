"""The log of a live run: what the simulator needs to make the same decisions again, and to be checked at each of them.

One `.npz` file per run, numpy arrays and a JSON header, nothing pickled. It holds requests, what the forward passes
found out (attention mass, tags, codec errors), controls with the telemetry they answered, and after every iteration
the clock, the tally and a checksum of every array of the ledger that must agree. No prompt or output text is in it.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.block_rules import orders_of
from pikv_runtime.contract import CONTRACT_HASH, Control, Telemetry
from pikv_runtime.ledger.state import Ledger
from pikv_runtime.models.segments import ForwardResult

if TYPE_CHECKING:
    from pikv_runtime.engine import Engine

Arrays = dict[str, NDArray[Any]]

FORMAT = "pikv-serving-log/1"

# What must agree after every iteration: bytes, hits, victims (who holds which page in which codec), clocks.
COMPARED = (
    "clock_s", "interval_end_s", "tally", "bytes_rank", "cached_bytes", "host_bytes", "free_count",
    "control_groups", "control_globals", "staged_s",
    "slot_request", "slot_owner", "slot_tokens", "page_block", "page_live", "page_ghost",
    "page_mass", "page_reads", "page_last_s",
    "block_hash", "block_cached", "block_host", "block_refs", "block_codec", "block_rank", "block_tag",
    "block_copies", "shard_home",
    "req_status", "req_hit_tokens", "req_preempted", "req_first_s", "req_finish_s", "req_loss",
)  # fmt: skip
REQUESTS = ("req_arrival_s", "req_prompt", "req_output", "req_class", "req_audited", "req_hashes")
CLASSES = ("class_weight", "class_ttft_s", "class_tpot_s", "class_fidelity")
# Members, and the axis along which each grows: T iterations, D decisions, O observations, F filled pages.
_ROWS = {
    "seconds": "T", "clock_s": "T", "plan": "T", "bytes_rank": "T", "tally": "T", "checks": "T",
    "decided_at": "D", "decided_groups": "D", "decided_globals": "D", "told_groups": "D", "told_globals": "D",
    "seen_at": "O", "seen_slot": "O", "seen_request": "O", "mass": "O", "score": "O",
    "filled_at": "F", "filled_slot": "F", "filled_request": "F", "filled_page": "F", "tags": "F", "errors": "F",
    "also": "F",
}  # fmt: skip
_FIXED = (*REQUESTS, *CLASSES, "prices", "lambdas", "final_tally")


class LogError(ValueError):
    """A log that cannot be read, or cannot be replayed here; the message says why."""


def checksums(s: Ledger) -> NDArray[np.uint32]:
    """CRC-32 of lane 0 of every array in `COMPARED`, (len(COMPARED),)."""
    count = int(s.num_requests[0])
    found = []
    for name in COMPARED:
        array = getattr(s, name)[0]
        array = array[:count] if name.startswith("req_") else array
        found.append(zlib.crc32(np.ascontiguousarray(array).tobytes()))
    return np.array(found, np.uint32)


@dataclass(frozen=True)
class ServingLog:
    """One run. `arrays` by name: R requests, T iterations, D decisions, O observations, F filled pages, L layers,
    P pages of a request, N groups.

    `seconds` (T,) of each iteration; `clock_s` (T,), `bytes_rank` (T, ranks), `tally` (T, len(Tally)) and `checks`
    (T, len(COMPARED)) after it; `plan` (T, slots) tokens. `decided_at` (D,) iterations made before a decision,
    `decided_groups` (D, N, 3), `decided_globals` (D, 17), and the telemetry that it answered, `told_*`. `seen_at`,
    `seen_slot`, `seen_request` (O,), `mass` and `score` (O, L, P). `filled_at`, `filled_slot`, `filled_request`,
    `filled_page` (F,), `tags` (F, L), `also` (F, L, copies - 1), `errors` (F, L, codecs). `req_*` (R, ...),
    `class_*`, `prices`, `lambdas` as in the ledger; `final_tally` after the episode was closed.
    """

    header: dict[str, Any]
    arrays: Arrays

    @property
    def iterations(self) -> int:
        """Iterations served."""
        return len(self.arrays["seconds"])

    def save(self, path: str | Path) -> Path:
        """Write the file: a reader sees the whole log or none. The name must end in `.npz`."""
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"{path}: a serving log's name must end in .npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        header = np.frombuffer(json.dumps({"format": FORMAT, **self.header}).encode(), np.uint8)
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, header=header, **self.arrays)
        os.replace(part, path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> ServingLog:
        """Read a file.

        Raises:
            FileNotFoundError: there is none.
            LogError: it is cut, corrupt, of another kind, or of another contract.
        """
        data = Path(path).read_bytes()
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as members:
                arrays = {name: members[name] for name in members.files}
            header = json.loads(arrays.pop("header").tobytes())
            if header.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            _check(header, arrays)
        except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, AttributeError, ValueError, EOFError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise LogError(f"{path}: not a sound serving log ({reason})") from None
        return cls(header, arrays)


def _check(header: dict[str, Any], arrays: Arrays) -> None:
    """Refuse another contract, and arrays that do not fit each other."""
    if header["contract"] != CONTRACT_HASH:
        raise ValueError(f"it is of contract {header['contract']!r}, this is {CONTRACT_HASH!r}")
    if tuple(header["compared"]) != COMPARED:
        raise ValueError("it holds checksums of other arrays than this version compares")
    lengths: dict[str, tuple[str, int]] = {}
    for name, axis in _ROWS.items():
        first, length = lengths.setdefault(axis, (name, len(arrays[name])))
        if len(arrays[name]) != length:
            raise ValueError(f"{name} has {len(arrays[name])} rows, {first} has {length}")
    for name in _FIXED:
        arrays[name]
    if len({len(arrays[name]) for name in REQUESTS}) > 1:
        raise ValueError("its requests' arrays have different lengths")


class ServingRecorder:
    """Attached to an engine after `load` and before the first decision; `log` at the end. What it costs is not in
    the iterations' times."""

    def __init__(self, engine: Engine, policy: str = "", limit_s: float = float("inf"), origin: str = "") -> None:
        """`policy`: what decides, so that a replay can decide for itself; `limit_s`: where serving is cut off."""
        if engine.signals is not None:
            raise ValueError("recording needs a run that finds its own signals; this one is fed recorded ones")
        if engine.ledger.tally[0].any():
            raise ValueError("recording starts before the first iteration; this run is under way")
        self.engine = engine
        self.header = {**_header(engine), "policy": policy, "limit_s": limit_s, "origin": origin}
        self._fixed = _start(engine)
        self._rows: dict[str, list[Any]] = {name: [] for name in _ROWS}
        engine.recorder = self

    def decided(self, telemetry: Telemetry, control: Control) -> None:
        """Keep a decision as it is enforced."""
        self._add(
            decided_at=len(self._rows["seconds"]),
            decided_groups=control.groups.copy(),
            decided_globals=control.globals.copy(),
            told_groups=telemetry.groups.copy(),
            told_globals=telemetry.globals.copy(),
        )

    def planned(self, s: Ledger, result: ForwardResult) -> None:
        """Keep what an iteration planned and found out, before it is committed."""
        at = len(self._rows["seconds"])
        self._add(plan=s.slot_plan[0].astype(np.int32))
        pad = ((0, 0), (0, s.page_block.shape[2]))
        for seen in sorted(result.observations, key=lambda o: o.slot):
            wide = (np.pad(x, pad)[:, : pad[1][1]] for x in (seen.mass, seen.score))
            self._add(**dict(zip(("mass", "score"), wide, strict=True)))
            self._add(seen_at=at, seen_slot=seen.slot, seen_request=int(s.slot_request[0, seen.slot]))
        for filled in sorted(result.filled, key=lambda f: (f.slot, f.page)):
            request = int(s.slot_request[0, filled.slot])
            self._add(filled_at=at, filled_slot=filled.slot, filled_page=filled.page, filled_request=request)
            self._add(tags=filled.tags.copy(), errors=filled.errors.copy())
            also = np.zeros((int(s.layers), 0), np.int8) if filled.also is None else filled.also.copy()
            self._add(also=also)

    def committed(self, s: Ledger, seconds: float) -> None:
        """Keep what the ledger is after an iteration of so many seconds."""
        self._add(seconds=seconds, clock_s=float(s.clock_s[0]), tally=s.tally[0].copy(), checks=checksums(s))
        self._add(bytes_rank=s.bytes_rank[0].copy())

    def log(self) -> ServingLog:
        """The run so far; final numbers are those of now."""
        s = self.engine.ledger
        shapes = _empty_rows(s)
        rows: Arrays = {
            name: np.array(self._rows[name], kind).reshape(len(self._rows[name]), *shape)
            for name, (shape, kind) in shapes.items()
        }
        return ServingLog(dict(self.header), {**self._fixed, **rows, "final_tally": s.tally[0].copy()})

    def _add(self, **values: Any) -> None:
        for name, value in values.items():
            self._rows[name].append(value)


def _header(engine: Engine) -> dict[str, Any]:
    """What a ledger like the engine's is built from, and what J is relative to."""
    s, reference = engine.ledger, engine.reference
    rule = engine.orders.block.name  # the policy's, where it names one
    config = {**asdict(engine.config), "blocks": int(s.block_hash.shape[1]), "block_rule": rule}
    centroids = int(s.ghost_bytes) if s.sparse == 1 else 0
    return {
        "contract": CONTRACT_HASH,
        "compared": list(COMPARED),
        "clock": engine.clock,
        "block_rule": orders_of(engine.policy, engine.config.block_rule).block.name,
        "ranks": int(s.ranks),
        "pages": int(s.page_block.shape[2]),
        "config": config,
        "shape": {
            "layers": int(s.layers),
            "experts": int(s.experts),
            "codec_bytes": [int(b) - centroids for b in s.codec_bytes],
            "centroid_bytes": int(s.ghost_bytes),
        },
        "cap_bytes": int(s.cap_bytes[0]),
        "host_bytes": int(s.host_cap[0]),
        "observe_salt": int(s.observe_salt[0]),
        "reference": {
            "latency": reference.latency,
            "duration_s": reference.duration_s,
            "audited": reference.audited,
            "charges": reference.charges.tolist(),
            "live_bytes_peak": reference.live_bytes_peak,
        },
    }


def _start(engine: Engine) -> Arrays:
    """The requests and what does not change."""
    s = engine.ledger
    count = int(s.num_requests[0])
    fixed = {name: getattr(s, name)[0, :count].copy() for name in REQUESTS}
    fixed |= {name: getattr(s, name)[0].copy() for name in CLASSES}
    return fixed | {"prices": s.prices[0].copy(), "lambdas": s.lambdas[0].copy()}


def _empty_rows(s: Ledger) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape of a row, and dtype, of every member that grows."""
    layers, pages, codecs = int(s.layers), s.page_block.shape[2], s.block_error.shape[3]
    telemetry = _telemetry_shapes(s)
    scalars = ("decided_at", "seen_at", "seen_slot", "seen_request", "filled_at", "filled_slot", "filled_request")
    return {
        "seconds": ((), np.float64),
        "clock_s": ((), np.float64),
        "plan": ((s.slot_plan.shape[1],), np.int32),
        "bytes_rank": ((int(s.ranks),), np.int64),
        "tally": ((s.tally.shape[1],), np.float64),
        "checks": ((len(COMPARED),), np.uint32),
        "decided_groups": (s.control_groups.shape[1:], np.float32),
        "decided_globals": (s.control_globals.shape[1:], np.float32),
        "told_groups": (telemetry[0], np.float32),
        "told_globals": (telemetry[1], np.float32),
        "mass": ((layers, pages), np.float32),
        "score": ((layers, pages), np.float32),
        "tags": ((layers,), np.int8),
        "also": ((layers, int(s.copies) - 1), np.int8),
        "errors": ((layers, codecs), np.float32),
        **dict.fromkeys((*scalars, "filled_page"), ((), np.int32)),
    }


def _telemetry_shapes(s: Ledger) -> tuple[tuple[int, ...], tuple[int, ...]]:
    told = Telemetry.zeros(s.control_groups.shape[1])
    return told.groups.shape, told.globals.shape
