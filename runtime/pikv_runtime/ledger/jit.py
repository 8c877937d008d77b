"""`jit`: numba's compiler where numba is installed, else the plain Python function (slow, same answers)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

try:
    from numba import njit

    HAVE_NUMBA = True
except ImportError:  # GPU servers: one lane, a few thousand pages; plain Python over numpy arrays will do
    HAVE_NUMBA = False


def jit(function: F) -> F:
    """Compile `function` in nopython mode, releasing the GIL, cached on disk; identity without numba."""
    if HAVE_NUMBA:
        # Nobody takes a function's address: leaving out the face for C saves a tenth of the time to compile.
        return njit(nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True)(function)
    return function
