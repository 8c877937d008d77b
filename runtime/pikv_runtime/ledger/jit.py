"""`jit`: numba's compiler where numba is installed, else the plain Python function (slow, same answers).

Compiled code is kept on disk in a folder named after the sources: numba's own check looks at a function's file alone,
and would go on using what was compiled with an older version of the functions that it calls.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pikv_runtime import contract
from pikv_runtime.private_cache import CacheError, cache_folder

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba

    HAVE_NUMBA = True
except ImportError:  # GPU servers: one lane, a few thousand pages; plain Python over numpy arrays will do
    HAVE_NUMBA = False


def jit(function: F) -> F:
    """Compile `function` in nopython mode, releasing the GIL, cached on disk; identity without numba."""
    if not HAVE_NUMBA:
        return function
    folder, before = _folder(), numba.config.CACHE_DIR
    numba.config.CACHE_DIR = folder or before
    try:
        # Nobody takes a function's address: leaving out the face for C saves a tenth of the time to compile.
        compiler = numba.njit(nogil=True, cache=bool(folder), error_model="numpy", no_cfunc_wrapper=True)
        return compiler(function)
    finally:
        numba.config.CACHE_DIR = before


@functools.cache
def _folder() -> str:
    """Where this version's compiled code lies; empty, after a warning, where no folder can be trusted."""
    digest = hashlib.sha256()
    for source in (*sorted(Path(__file__).parent.glob("*.py")), Path(contract.__file__)):
        digest.update(source.read_bytes())
    try:
        return str(cache_folder() / f"ledger-{digest.hexdigest()[:16]}")
    except CacheError as error:
        logging.getLogger("pikv").warning("compiled code is not kept, every process compiles anew: %s", error)
        return ""
