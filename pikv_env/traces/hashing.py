"""64-bit mixing of block hashes and salts, vectorised.

The library's chain hashes are SHA-256 and bind a block to its text; mixing them with a salt only has to keep
simulated tenants apart, so the fast splitmix64 finaliser is enough. Never use it to isolate real tenants.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def as_words(values: Any) -> NDArray[np.uint64]:
    """View integers of any sign and width as 64-bit words."""
    return np.asarray(values, dtype=np.int64).view(np.uint64)


def splitmix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 step: a bijection of 64-bit words that looks random; any shape."""
    with np.errstate(over="ignore"):
        z = words + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def mix(*parts: Any) -> NDArray[np.uint64]:
    """One word from several integers or word arrays, broadcast against each other; the order matters."""
    state = np.zeros((), np.uint64)
    for part in parts:
        words = part if isinstance(part, np.ndarray) and part.dtype == np.uint64 else as_words(part)
        state = splitmix64(state ^ words)
    return state


def to_hash_ids(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Positive int64 block ids from words; zero, which marks "no block", never appears."""
    return np.maximum((words >> np.uint64(1)).astype(np.int64), 1)


def to_uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Floats in [0, 1) from the upper 53 bits of words."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
