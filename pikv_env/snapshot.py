"""Saving and restoring one lane of a batch: forks and replays of an episode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pikv_env.batch import TraceBatch

_OWN = (
    "groups", "globals", "control_groups", "control_globals", "done", "limit_s", "before", "scale", "parts",
    "workload", "pressure", "elapsed",
)  # fmt: skip
"""Arrays of the batch itself whose leading axis is the lane."""


@dataclass(frozen=True)
class LaneState:
    """A lane at one moment: the ledger's arrays, the batch's own, and the generator of later episodes.

    It fits any lane of any batch over an equal pool (same library, config and pool seed).
    """

    ledger: dict[str, NDArray[Any]] = field(repr=False)
    own: dict[str, NDArray[Any]] = field(repr=False)
    rng: dict[str, Any] = field(repr=False)


def lane_arrays(batch: TraceBatch) -> dict[str, NDArray[Any]]:
    """The ledger's arrays whose leading axis is the lane, by name."""
    shared = {"layer_group", "codec_bytes"}
    return {
        name: value
        for name, value in batch.state._asdict().items()
        if isinstance(value, np.ndarray) and name not in shared and not name.startswith("class_")
    }


def save_lane(batch: TraceBatch, i: int) -> LaneState:
    """A copy of lane `i`."""
    return LaneState(
        {name: value[i].copy() for name, value in lane_arrays(batch).items()},
        {name: np.array(getattr(batch, name)[i]) for name in _OWN},
        dict(batch.rngs[i].bit_generator.state),
    )


def restore_lane(batch: TraceBatch, i: int, state: LaneState) -> None:
    """Put lane `i` back into `state`, which stays usable.

    Raises:
        ValueError: the state comes from a batch of another size; nothing is changed.
    """
    arrays = lane_arrays(batch)
    wrong = [n for n, a in arrays.items() if n not in state.ledger or state.ledger[n].shape != a[i].shape]
    if wrong:
        raise ValueError(f"the state is of a batch over another pool: {wrong[0]} differs in shape")
    for name, value in arrays.items():
        value[i] = state.ledger[name]
    for name in _OWN:
        getattr(batch, name)[i] = state.own[name]
    batch.rngs[i].bit_generator.state = state.rng
