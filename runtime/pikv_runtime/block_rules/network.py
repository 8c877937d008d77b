"""The network of the learned block rule as a file: one float32 array, and what it was fitted on, in safetensors."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHIPPED = Path(__file__).parent / "reuse.safetensors"
KEY = "network"


def load_network(path: Path | None = None) -> NDArray[np.float32]:
    """The network in `path`, or the one that comes with the package, (reuse.WEIGHTS,).

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    return _load(path or SHIPPED)


@functools.lru_cache(maxsize=8)
def _load(path: Path) -> NDArray[np.float32]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from pikv_runtime.ledger.reuse import WEIGHTS

    try:
        found = load_file(path).get(KEY)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"lrb: weights={str(path)!r}: not a readable safetensors file ({error})") from None
    if found is None or found.shape != (WEIGHTS,) or not np.isfinite(found).all():
        shape = None if found is None else found.shape
        raise ValueError(f"lrb: weights={str(path)!r}: wanted {WEIGHTS} finite numbers named {KEY!r}, found {shape}")
    return found.astype(np.float32)


def save_network(network: NDArray[np.float32], path: Path, about: dict[str, str]) -> None:
    """Write a network, and what it was fitted on, to `path`."""
    from safetensors.numpy import save_file

    save_file({KEY: np.ascontiguousarray(network, np.float32)}, path, metadata=about)
