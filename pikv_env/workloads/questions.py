"""Questions about a document whose answer lies far back in it, found by the form of its records.

A question is the text with which a prompt ends; the exact continuation then begins by recalling. The patterns
are those that the synthetic tasks write, so no task needs to know about questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
Question = Callable[[Rng, bytes], bytes]

# A record, and the words that ask for its value: groups are filled in by `Match.expand`.
_RECORDS: dict[str, tuple[re.Pattern[bytes], bytes]] = {
    "facts": (re.compile(rb"[ ;](\w\w)=(\d{3});"), rb"?\1="),
    "needle": (re.compile(rb"\nThe key of (\w\w) is (\d{3})\."), rb"\nThe key of \1 is "),
    "dialogue": (
        re.compile(rb"\w+: The (\w+) of (\w+) is (\d{3})\.\n"),
        rb"Q: What is the \1 of \2? A: The \1 of \2 is ",
    ),
}
FAR_SHARE = 2 / 3  # asked is what stands in this first part of the document, where it holds a record
MIN_FRAGMENT = 12  # bytes quoted from the document where it holds no records
MAX_FRAGMENT = 32


def ask(kind: str, rng: Rng, document: bytes) -> bytes:
    """A question of one kind about `document`, at most 64 bytes; a quotation where it holds no record."""
    question = _ASK.get(kind, quote)(rng, document)
    return question[1:] if question[:1] == document[-1:] == b"\n" else question


def last_answer(document: bytes, question: bytes) -> bytes:
    """The value stated last in `document` for a dialogue's question; b"" where none."""
    stated = question.rsplit(b"A: ", 1)[-1]
    at = document.rfind(stated)
    return document[at + len(stated) : at + len(stated) + 3] if at >= 0 else b""


def quote(rng: Rng, document: bytes) -> bytes:
    """The first bytes of an earlier line, so that going on means to repeat what followed it."""
    length = int(rng.integers(MIN_FRAGMENT, MAX_FRAGMENT + 1))
    last = max(1, int(len(document) * FAR_SHARE) - length)
    starts = [m.end() for m in re.finditer(rb"\n[ \t]*", document[:last])] or [int(rng.integers(0, last))]
    start = starts[int(rng.integers(len(starts)))]
    return b"\n" + document[start : start + length]


def copied(rng: Rng, document: bytes) -> bytes:
    """The first letters of a string copied earlier, as the copy task begins its lines."""
    length = int(rng.integers(MIN_FRAGMENT, MAX_FRAGMENT + 1))
    start = int(rng.integers(0, max(1, int(len(document) * FAR_SHARE) - length)))
    return b"\n" + document[start : start + length].replace(b"\n", b"").replace(b"|", b"")


def _record(kind: str) -> Question:
    """Ask for one of the far records of `kind`, all equally likely."""
    pattern, template = _RECORDS[kind]

    def question(rng: Rng, document: bytes) -> bytes:
        found = list(pattern.finditer(document))
        far = [match for match in found if match.end() <= len(document) * FAR_SHARE] or found
        return far[int(rng.integers(len(far)))].expand(template) if far else quote(rng, document)

    return question


def _lookup(rng: Rng, document: bytes) -> bytes:
    """Look a key of a Python dictionary up, in the form of the dictionary task."""
    name = re.search(rb"(\w) = \{", document)
    keys = re.findall(rb'"(\w\w)": \d{3}', document)
    if name is None or not keys:
        return quote(rng, document)
    key: bytes = keys[int(rng.integers(len(keys)))]
    return b"\n" + name[1] + b'["' + key + b'"]  # '


def _any_record(rng: Rng, document: bytes) -> bytes:
    """Ask in one of the forms that the document has records for."""
    forms = [f for f in ("facts", "dialogue") if _RECORDS[f][0].search(document)]
    forms += ["dictionary"] if re.search(rb'"\w\w": \d{3}', document) else []
    return _ASK[forms[int(rng.integers(len(forms)))]](rng, document) if forms else quote(rng, document)


_ASK: dict[str, Question] = {
    "facts": _record("facts"),
    "needle": _record("needle"),
    "dialogue": _record("dialogue"),
    "dictionary": _lookup,
    "copy": copied,
    "regime": _any_record,
}
