"""The folder for compiled code: what lies in it is executed, so nobody else may write to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class CacheError(RuntimeError):
    """Why the folder cannot be had or trusted, in one line."""


def cache_folder() -> Path:
    """`${PIKV_CACHE:-${XDG_CACHE_HOME:-~/.cache}}/pikv`, private.

    Raises:
        CacheError: The folder belongs to somebody else, or others may write to it.
    """
    base = os.environ.get("PIKV_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() / "pikv"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CacheError(f"cannot create the cache folder {folder}: {error.strerror}") from None
    check_private(folder, is_folder=True)
    return folder


def check_private(path: Path, is_folder: bool = False) -> None:
    """Raise CacheError unless `path` is a plain file or folder that only this user can write to."""
    kind, is_kind = ("folder", stat.S_ISDIR) if is_folder else ("file", stat.S_ISREG)
    info = path.lstat()
    if not is_kind(info.st_mode):
        raise CacheError(f"cache {path} is not a plain {kind}")
    if info.st_uid != os.getuid():
        raise CacheError(f"cache {kind} {path} belongs to user {info.st_uid}, not to {os.getuid()}")
    if info.st_mode & 0o022:
        raise CacheError(f"cache {kind} {path} has mode {stat.S_IMODE(info.st_mode):o}: others may write to it")
