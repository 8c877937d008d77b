"""The contexts that tasks and probes write: tokens, the answers among them, and a writer that tracks both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Rng = np.random.Generator

_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
_DIGITS = np.frombuffer(b"0123456789", dtype=np.uint8)
_SYMBOLS = np.concatenate([_LETTERS, _DIGITS])


@dataclass(frozen=True)
class Answer:
    """One answer inside a context: tokens `start` to `end` repeat the tokens that begin at `source`."""

    start: int
    end: int
    source: int

    @property
    def distance(self) -> int:
        """The number of tokens between the fact and its answer."""
        return self.start - self.source


@dataclass(frozen=True)
class TaskSample:
    """A context of byte tokens, the mask of its answer tokens, and the answers one by one."""

    ids: np.ndarray
    answer_mask: np.ndarray
    answers: tuple[Answer, ...] = ()


class Writer:
    """Collects the bytes of a context and remembers where facts and answers are."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._answers: list[Answer] = []
        self.length = 0

    def put(self, text: bytes) -> int:
        """Append text.

        Args:
            text: The bytes to append.

        Returns:
            The position of its first byte.
        """
        start = self.length
        self._parts.append(text)
        self.length += len(text)
        return start

    def answer(self, text: bytes, source: int) -> None:
        """Append text that answers from an earlier position.

        Args:
            text: The bytes of the answer.
            source: The position at which the same bytes began earlier.
        """
        start = self.put(text)
        self._answers.append(Answer(start, self.length, source))

    def append(self, sample: TaskSample) -> None:
        """Append a whole sample with its answers.

        Args:
            sample: The sample.
        """
        base = self.put(sample.ids.astype(np.uint8).tobytes())
        self._answers += [Answer(a.start + base, a.end + base, a.source + base) for a in sample.answers]

    def finish(self, length: int) -> TaskSample:
        """Cut the context to its length; an answer that would be cut is dropped.

        Args:
            length: The number of tokens of the sample, at most `self.length`.

        Returns:
            The sample.
        """
        ids = np.frombuffer(b"".join(self._parts), dtype=np.uint8)[:length].astype(np.int64)
        answers = tuple(answer for answer in self._answers if answer.end <= length)
        mask = np.zeros(length, dtype=bool)
        for answer in answers:
            mask[answer.start : answer.end] = True
        return TaskSample(ids, mask, answers)


def plain(text: bytes) -> TaskSample:
    """Wrap text without answers.

    Args:
        text: The bytes of the context.

    Returns:
        The sample.
    """
    writer = Writer()
    writer.put(text)
    return writer.finish(writer.length)


def word(rng: Rng, length: int) -> bytes:
    """Draw random lower-case letters.

    Args:
        rng: The source of randomness.
        length: The number of letters.

    Returns:
        The letters.
    """
    return rng.choice(_LETTERS, length).tobytes()


def symbols(rng: Rng, length: int, variety: int = 36) -> bytes:
    """Draw random lower-case letters and digits.

    Args:
        rng: The source of randomness.
        length: The number of symbols.
        variety: How many different symbols may occur; fewer make longer stretches ambiguous.

    Returns:
        The symbols.
    """
    return rng.choice(rng.permutation(_SYMBOLS)[:variety], length).tobytes()


def number(rng: Rng, length: int = 3) -> bytes:
    """Draw random decimal digits.

    Args:
        rng: The source of randomness.
        length: The number of digits.

    Returns:
        The digits.
    """
    return rng.choice(_DIGITS, length).tobytes()


def keys(rng: Rng, count: int) -> list[bytes]:
    """Draw distinct keys of two letters.

    Args:
        rng: The source of randomness.
        count: The number of keys, at most 676.

    Returns:
        The keys, in random order.
    """
    drawn = rng.permutation(676)[:count]
    return [bytes((97 + int(index) // 26, 97 + int(index) % 26)) for index in drawn]
