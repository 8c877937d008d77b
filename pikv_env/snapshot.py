"""Saving and restoring one lane of a batch: forks, replays, and states that are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pikv_runtime.block_rules import Orders, make_block_rule
from pikv_runtime.contract import CONTRACT_HASH
from pikv_runtime.ledger import Ledger
from pikv_runtime.ledger.rule_room import optional_arrays

FORMAT = "pikv-lane-state/1"
OWN = (
    "groups", "globals", "control_groups", "control_globals", "done", "limit_s", "before", "scale", "parts",
    "spent", "workload", "pressure", "elapsed",
)  # fmt: skip
"""Arrays of a batch itself whose leading axis is the lane."""

Arrays = Mapping[str, NDArray[Any]]


class StateError(ValueError):
    """A stored state that cannot be read, or a state of another pool; the message says why."""


@dataclass(frozen=True)
class LaneState:
    """A lane at one moment: the ledger's arrays, the batch's own, and the generator of later episodes.

    It fits any lane of any batch over an equal pool (same library, config and pool seed).
    """

    ledger: dict[str, NDArray[Any]] = field(repr=False)
    own: dict[str, NDArray[Any]] = field(repr=False)
    rng: dict[str, Any] = field(repr=False)
    pool: str = ""
    """Fingerprint of the pool."""
    orders: Orders = field(default_factory=Orders)
    """Block rule and page order of the lane."""

    def to_bytes(self) -> bytes:
        """The state in the safetensors format, everything but the arrays as JSON in its header: no pickle."""
        arrays = {f"ledger/{name}": value for name, value in self.ledger.items()}
        arrays |= {f"own/{name}": value for name, value in self.own.items()}
        orders = [self.orders.block.name, self.orders.page]
        header = {"format": FORMAT, "contract": CONTRACT_HASH, "pool": self.pool, "rng": self.rng, "orders": orders}
        # One entry of metadata: of several, safetensors does not keep the order, and equal states are equal bytes.
        metadata = {"pikv": json.dumps(header)}
        return save({name: np.asarray(value, order="C") for name, value in arrays.items()}, metadata=metadata)

    @classmethod
    def from_bytes(cls, data: bytes) -> LaneState:
        """Read what `to_bytes` wrote; raises StateError where it is cut, of another kind, or of another contract."""
        header = _header(data)
        if header.get("format") != FORMAT:
            raise StateError(f"not a stored state: format {header.get('format')!r}, expected {FORMAT!r}")
        if header.get("contract") != CONTRACT_HASH:
            raise StateError(f"the state is of contract {header.get('contract')!r}, this is {CONTRACT_HASH!r}")
        try:
            arrays, rng = load(data), header["rng"]
            rule, page = header.get("orders", ("utility", "weights"))
            orders = Orders(make_block_rule(rule), page)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise StateError(f"not a whole stored state ({error})") from None
        parts = {
            part: {name.removeprefix(part): a for name, a in arrays.items() if name.startswith(part)}
            for part in ("ledger/", "own/")
        }
        return cls(parts["ledger/"], parts["own/"], rng, header.get("pool", ""), orders)


def _header(data: bytes) -> dict[str, Any]:
    """What `to_bytes` put into the metadata of a safetensors payload."""
    length = int.from_bytes(data[:8], "little")
    try:
        found = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pikv"])
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, dict):
        raise StateError("not a stored state: no header of ours")
    return found


def lane_arrays(ledger: Ledger) -> dict[str, NDArray[Any]]:
    """The ledger's arrays whose leading axis is the lane, by name."""
    shared = {"layer_group", "shard_map", "codec_bytes"}
    return {
        name: np.asarray(value)  # without numba a subclass, whose elements are Python's numbers
        for name, value in ledger._asdict().items()
        if isinstance(value, np.ndarray) and name not in shared
    }


def save_lane(i: int, ledger: Ledger, own: Arrays, rng: np.random.Generator, pool: str) -> LaneState:
    """A copy of lane `i`; `own` are the batch's arrays by the names of `OWN`, `pool` its pool's fingerprint."""
    return LaneState(
        {name: np.array(value[i]) for name, value in lane_arrays(ledger).items()},
        {name: np.array(value[i]) for name, value in own.items()},
        dict(rng.bit_generator.state),
        pool,
    )


def restore_lane(i: int, state: LaneState, ledger: Ledger, own: Arrays, rng: np.random.Generator, pool: str) -> None:
    """Put lane `i` back into `state`, which stays usable.

    Raises:
        StateError: the state comes from another pool; nothing is changed.
    """
    arrays = lane_arrays(ledger)
    spare = {n for n in optional_arrays() if n in state.ledger and state.ledger[n].size == 0 != arrays[n][i].size}
    for name in spare:  # room that the saved lane had no need of
        arrays.pop(name)
    for kind, have, wanted in (("ledger", state.ledger, arrays), ("batch", state.own, own)):
        for name, value in wanted.items():
            if name not in have or have[name].shape != value[i].shape or have[name].dtype != value.dtype:
                raise StateError(f"the state is of a batch over another pool: {kind} array {name!r} differs")
    if state.pool != pool:
        raise StateError(f"the state is of a batch over another pool: {state.pool!r}, this one is {pool!r}")
    for name, value in arrays.items():
        value[i] = state.ledger[name]
    for name, value in own.items():
        value[i] = state.own[name]
    rng.bit_generator.state = state.rng
