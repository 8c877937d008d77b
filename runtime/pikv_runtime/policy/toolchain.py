"""Builds C source with the system compiler, once: libraries are cached by content in a private folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from pikv_runtime.private_cache import CacheError, cache_folder, check_private

# No -ffast-math: NaN must stay NaN. The two -fno- flags only say that nobody reads errno or traps.
FLAGS = ("-O3", "-fno-trapping-math", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC")
TUNING = {"x86_64": "-march=native", "amd64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
"""How the instruction set of this very processor is asked for, by machine; a compiler that refuses does without."""
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
    flags = (*FLAGS, *tuning(compiler))
    try:
        path = cache_folder() / f"policy-{_key(source, compiler, flags)}.so"
        if not path.exists():
            _build(source, compiler, flags, path)
        check_private(path)
        try:
            return ctypes.PyDLL(str(path))
        except OSError:
            # A damaged file: build it anew, once.
            _build(source, compiler, flags, path)
            return ctypes.PyDLL(str(path))
    except (CacheError, OSError) as error:
        raise NativeBuildError(str(error)) from None


@cache
def tuning(compiler: str) -> tuple[str, ...]:
    """The flag that tunes for this processor, or nothing where the compiler knows none."""
    flag = TUNING.get(platform.machine().lower())
    if flag is None:
        return ()
    try:
        _macros(compiler, (*FLAGS, flag))
    except NativeBuildError:
        return ()
    return (flag,)


@cache
def _macros(compiler: str, flags: tuple[str, ...]) -> str:
    """What the compiler predefines: its version, and the instruction set."""
    return _run([compiler, *flags, "-dM", "-E", "-x", "c", os.devnull])


def _key(source: str, compiler: str, flags: tuple[str, ...]) -> str:
    """Digest of source, flags, compiler version and instruction set: a home folder may serve several machines."""
    return hashlib.sha256("\0".join([source, *flags, _macros(compiler, flags)]).encode()).hexdigest()[:32]


def _build(source: str, compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Compile beside `path`, then rename: a half-written library is never seen."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as scratch:
        text, library = Path(scratch, "policy.c"), Path(scratch, "policy.so")
        text.write_text(source, encoding="utf-8")
        _run([compiler, *flags, "-o", str(library), str(text), "-lm"])
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
