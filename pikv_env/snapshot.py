"""Saving and restoring one lane of a batch: forks and replays of an episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.ledger import Ledger

OWN = (
    "groups", "globals", "control_groups", "control_globals", "done", "limit_s", "before", "scale", "parts",
    "workload", "pressure", "elapsed",
)  # fmt: skip
"""Arrays of a batch itself whose leading axis is the lane."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class LaneState:
    """A lane at one moment: the ledger's arrays, the batch's own, and the generator of later episodes.

    It fits any lane of any batch over an equal pool (same library, config and pool seed).
    """

    ledger: dict[str, NDArray[Any]] = field(repr=False)
    own: dict[str, NDArray[Any]] = field(repr=False)
    rng: dict[str, Any] = field(repr=False)


def lane_arrays(ledger: Ledger) -> dict[str, NDArray[Any]]:
    """The ledger's arrays whose leading axis is the lane, by name."""
    shared = {"layer_group", "codec_bytes"}
    return {
        name: value
        for name, value in ledger._asdict().items()
        if isinstance(value, np.ndarray) and name not in shared and not name.startswith("class_")
    }


def save_lane(i: int, ledger: Ledger, own: Arrays, rng: np.random.Generator) -> LaneState:
    """A copy of lane `i`; `own` are the batch's arrays by the names of `OWN`."""
    return LaneState(
        {name: value[i].copy() for name, value in lane_arrays(ledger).items()},
        {name: np.array(value[i]) for name, value in own.items()},
        dict(rng.bit_generator.state),
    )


def restore_lane(i: int, state: LaneState, ledger: Ledger, own: Arrays, rng: np.random.Generator) -> None:
    """Put lane `i` back into `state`, which stays usable.

    Raises:
        ValueError: the state comes from a batch of another size; nothing is changed.
    """
    arrays = lane_arrays(ledger)
    wrong = [n for n, a in arrays.items() if n not in state.ledger or state.ledger[n].shape != a[i].shape]
    if wrong:
        raise ValueError(f"the state is of a batch over another pool: {wrong[0]} differs in shape")
    for name, value in arrays.items():
        value[i] = state.ledger[name]
    for name, value in own.items():
        value[i] = state.own[name]
    rng.bit_generator.state = state.rng
