"""Contexts that end with one question whose answer lies at a chosen distance."""

from __future__ import annotations

from collections.abc import Callable

from .samples import Rng, TaskSample, Writer, keys, number
from .text import excerpt

_PREFIX = 64


def probe_facts(rng: Rng, distance: int) -> TaskSample:
    """Ask for one fact of a dense stream of facts and repetitions.

    Args:
        rng: The source of randomness.
        distance: The number of tokens between the fact and its answer; in whole records of eight.

    Returns:
        The sample, with exactly one answer.
    """
    writer = Writer()
    between = distance // 8 - 1
    target, *fresh = keys(rng, min(676, between + _PREFIX // 8 + 1))
    known: list[tuple[bytes, bytes]] = []

    def record() -> None:
        if known and rng.random() < 0.5:
            key, value = known[int(rng.integers(len(known)))]
            writer.put(b"?" + key + b"=" + value + b";")
        else:
            known.append((fresh.pop(), number(rng)))
            writer.put(b" " + known[-1][0] + b"=" + known[-1][1] + b";")

    for _ in range(_PREFIX // 8):
        record()
    value = number(rng)
    source = writer.put(b" " + target + b"=" + value + b";") + 4
    for _ in range(between):
        record()
    writer.put(b"?" + target + b"=")
    writer.answer(value, source)
    return writer.finish(writer.length)


def probe_needle(rng: Rng, distance: int) -> TaskSample:
    """Ask for one of three facts hidden in held-out prose.

    Args:
        rng: The source of randomness.
        distance: The number of tokens between the fact and its answer, at least 64.

    Returns:
        The sample, with exactly one answer.
    """
    writer = Writer()
    target, other, third = keys(rng, 3)
    value = number(rng)

    def state(key: bytes, stated: bytes) -> int:
        start = writer.put(b"\nThe key of " + key + b" is ") + 18
        writer.put(stated + b".\n")
        return start

    writer.put(excerpt(rng, "prose", _PREFIX, "heldout"))
    state(other, number(rng))
    source = state(target, value)
    filler = excerpt(rng, "prose", distance - 46, "heldout")
    cut = int(rng.integers(0, len(filler) + 1))
    writer.put(filler[:cut])
    state(third, number(rng))
    writer.put(filler[cut:] + b"\nThe key of " + target + b" is ")
    writer.answer(value, source)
    return writer.finish(writer.length)


def probe_dictionary(rng: Rng, distance: int) -> TaskSample:
    """Look one value up in a Python dictionary that lies before the question.

    Args:
        rng: The source of randomness.
        distance: The number of tokens between the entry and its answer; rounded to whole entries of eleven.

    Returns:
        The sample, with exactly one answer.
    """
    writer = Writer()
    target, *others = keys(rng, max(2, (distance - 22) // 11 + 7))
    writer.put(b"d = {")
    for key in others[:6]:
        writer.put(b'"' + key + b'": ' + number(rng) + b", ")
    value = number(rng)
    source = writer.put(b'"' + target + b'": ' + value + b", ") + 6
    for key in others[6:]:
        writer.put(b'"' + key + b'": ' + number(rng) + b", ")
    writer.put(b'}\nd["' + target + b'"]  # ')
    writer.answer(value, source)
    return writer.finish(writer.length)


Probe = Callable[[Rng, int], TaskSample]

PROBES: dict[str, Probe] = {"facts": probe_facts, "needle": probe_needle, "dictionary": probe_dictionary}
