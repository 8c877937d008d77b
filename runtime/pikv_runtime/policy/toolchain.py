"""Builds C source with the system compiler, once: libraries are cached by content in a private folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from pikv_runtime.private_cache import CacheError, cache_folder, check_private

# No -ffast-math: NaN must stay NaN. The two -fno- flags only say that nobody reads errno or traps.
FLAGS = ("-O3", "-march=native", "-fno-trapping-math", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
_TIMEOUT_S = 300


class NativeBuildError(RuntimeError):
    """Why no library could be built or trusted, in one line."""


def find_compiler() -> str:
    """Path of the system's C compiler; raises NativeBuildError."""
    for name in COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return path
    raise NativeBuildError(f"no C compiler on PATH (looked for {', '.join(COMPILERS)})")


def load_library(source: str) -> ctypes.PyDLL:
    """The shared library of `source`, from the cache or built now.

    The GIL is kept during calls: they take a microsecond, less than handing it over and back.
    """
    compiler = find_compiler()
    try:
        path = cache_folder() / f"policy-{_key(source, compiler)}.so"
        if not path.exists():
            _build(source, compiler, path)
        check_private(path)
    except CacheError as error:
        raise NativeBuildError(str(error)) from None
    try:
        return ctypes.PyDLL(str(path))
    except OSError:
        # A damaged file: build it anew, once.
        _build(source, compiler, path)
        return ctypes.PyDLL(str(path))


def _key(source: str, compiler: str) -> str:
    """Digest of source, flags, compiler version and the instruction set that `native` means here."""
    macros = _run([compiler, *FLAGS, "-dM", "-E", "-x", "c", os.devnull])
    return hashlib.sha256("\0".join([source, *FLAGS, macros]).encode()).hexdigest()[:32]


def _build(source: str, compiler: str, path: Path) -> None:
    """Compile beside `path`, then rename: a half-written library is never seen."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as scratch:
        text, library = Path(scratch, "policy.c"), Path(scratch, "policy.so")
        text.write_text(source, encoding="utf-8")
        _run([compiler, *FLAGS, "-o", str(library), str(text), "-lm"])
        library.chmod(0o700)
        library.replace(path)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"{command[0]}: {error}") from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise NativeBuildError(f"{command[0]} failed with status {done.returncode}: {reason}")
    return done.stdout
