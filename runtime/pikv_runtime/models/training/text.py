"""Prose and code of the Python installation, split by file into a training and a held-out part.

Every text here ships with CPython, so a corpus needs no network and no file of anyone else. The split
follows the name of the source file: code and docstrings of one file always fall on the same side. The exact
bytes follow the version of the running interpreter; `corpus_digest` names them.
"""

from __future__ import annotations

import hashlib
import html
import importlib
import re
import sysconfig
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

Kind = Literal["prose", "code"]
Split = Literal["train", "heldout"]

_SKIPPED = {
    "site-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "__pycache__",
    "ensurepip",
}
_DOCSTRING = re.compile(r'(?:\A|:)\s*[rR]?"""((?:(?!""").){240,}?)"""', re.DOTALL)
_PROSE_FILES = ("LICENSE.txt", "idlelib/*.txt", "idlelib/help.html")
_HELD_OUT_ONE_IN = 16


def is_held_out(name: str) -> bool:
    """Tell on which side of the split a source file falls.

    Args:
        name: The path of the file relative to the standard library, with forward slashes.

    Returns:
        True for about one file in sixteen, always the same ones.
    """
    return hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT_ONE_IN == 0


@cache
def documents(kind: Kind, split: Split = "train") -> tuple[bytes, ...]:
    """Collect the documents of one kind and split.

    Args:
        kind: "prose" or "code".
        split: "train" or "heldout".

    Returns:
        The documents as UTF-8 bytes, in the order of their names.
    """
    source = _code_files() if kind == "code" else _prose_files()
    chosen = [text for name, text in sorted(source.items()) if is_held_out(name) == (split == "heldout")]
    return tuple(text.encode() for text in chosen)


@cache
def stream(kind: Kind, split: Split = "train") -> np.ndarray:
    """Join the documents of one kind and split into one array of bytes.

    Args:
        kind: "prose" or "code".
        split: "train" or "heldout".

    Returns:
        A read-only uint8 array; documents are separated by a blank line.
    """
    return np.frombuffer(b"\n\n".join(documents(kind, split)), dtype=np.uint8)


def excerpt(rng: np.random.Generator, kind: Kind, length: int, split: Split = "train") -> bytes:
    """Cut a random excerpt out of a stream, starting at the beginning of a line where one is near.

    Args:
        rng: The source of randomness.
        kind: "prose" or "code".
        length: The number of bytes.
        split: "train" or "heldout".

    Returns:
        Exactly `length` bytes.

    Raises:
        ValueError: If the stream is shorter than the excerpt.
    """
    text = stream(kind, split)
    if length > len(text):
        raise ValueError(f"an excerpt of {length} bytes does not fit in {len(text)} bytes of {split} {kind}")
    start = int(rng.integers(0, len(text) - length + 1))
    newlines = np.flatnonzero(text[start : start + 160] == ord("\n"))
    if len(newlines) and start + int(newlines[0]) + 1 + length <= len(text):
        start += int(newlines[0]) + 1
    return text[start : start + length].tobytes()


def corpus_digest() -> str:
    """Name the corpus of the running interpreter.

    Returns:
        The first sixteen hexadecimal digits of a SHA-256 over all documents.
    """
    digest = hashlib.sha256()
    for kind in ("prose", "code"):
        for split in ("train", "heldout"):
            digest.update(stream(kind, split).tobytes())
    return digest.hexdigest()[:16]


@cache
def _code_files() -> dict[str, str]:
    """Read every module of the standard library outside its tests and tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _SKIPPED.isdisjoint(name.parts) and not name.name.startswith("_sysconfigdata"):
            text = path.read_text(encoding="utf-8", errors="ignore")
            if len(text) > 200:
                found[name.as_posix()] = text
    return found


@cache
def _prose_files() -> dict[str, str]:
    """Collect the help topics, the shipped text files and the long docstrings."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {f"topics/{name}": text.strip() for name, text in _topics().items()}
    for pattern in _PROSE_FILES:
        for path in sorted(root.glob(pattern)):
            text = path.read_text(encoding="utf-8", errors="ignore")
            found[path.relative_to(root).as_posix()] = _plain(text) if path.suffix == ".html" else text
    for name, source in _code_files().items():
        passages = [_dedent(passage) for passage in _DOCSTRING.findall(source)]
        if passages:
            found[name] = "\n\n".join(passages)
    return found


def _topics() -> dict[str, str]:
    """Read the help topics of `pydoc`; an installation without them has none."""
    try:
        return dict(importlib.import_module("pydoc_data.topics").topics)
    except ImportError:
        return {}


def _plain(markup: str) -> str:
    """Strip the tags of an HTML page."""
    return re.sub(r"\n{3,}", "\n\n", html.unescape(re.sub(r"<[^>]+>", "", markup)))


def _dedent(passage: str) -> str:
    """Strip the indentation of every line of a docstring."""
    return "\n".join(line.strip() for line in passage.strip().splitlines())
