"""Synthetic contexts in which far attention matters, deterministic from a numpy generator.

Each task writes a context of an exact number of byte tokens and marks the answers: the tokens that follow
from something earlier in the same context. The training of the embedded model weighs its loss by these
marks, and the workload generators replay the same contexts against a cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .samples import Rng, TaskSample, Writer, keys, number, plain, symbols, word
from .text import Split, excerpt

_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Hana", "Ivo", "Kim", "Lea", "Max", "Nia", "Otto")
_VARIETIES = (4, 6, 10, 36)
_JOINTS = (b"", b"", b"=", b":", b": ", b"->", b" is ")
_ENDS = (b";", b" ", b"\n", b",", b". ")
_TOPICS = ("code", "door", "room", "seat", "desk", "bus", "locker", "ticket", "phone", "order")


def copy(rng: Rng, length_tokens: int) -> TaskSample:
    """Random strings, each followed by its repetition.

    Args:
        rng: The source of randomness.
        length_tokens: The number of tokens.

    Returns:
        The sample; the answers are the repetitions.
    """
    writer = Writer()
    longest = max(8, length_tokens // 2 - 2)
    while writer.length < length_tokens:
        size = int(np.exp(rng.uniform(np.log(8), np.log(longest + 1))))
        text = symbols(rng, size, int(rng.choice(_VARIETIES)))
        source = writer.put(text)
        writer.put(b"|" + text[:2])
        writer.answer(text[2:], source + 2)
        writer.put(b"\n")
    return writer.finish(length_tokens)


def facts(rng: Rng, length_tokens: int, *, query_share: float = 0.5) -> TaskSample:
    """A stream of facts `key=value;` among which earlier facts are asked again.

    Args:
        rng: The source of randomness.
        length_tokens: The number of tokens.
        query_share: The share of records that repeat an earlier fact.

    Returns:
        The sample; the answers are the values that are asked again.
    """
    writer = Writer()
    fresh = keys(rng, min(676, length_tokens // 7 + 1))
    known: list[tuple[bytes, bytes, int]] = []
    while writer.length < length_tokens:
        if known and (not fresh or rng.random() < query_share):
            at = int(rng.integers(len(known)))
            key, value, source = known[at]
            writer.put(b"?" + key + b"=")
            known[at] = (key, value, writer.length)
            writer.answer(value, source)
        else:
            key, value = fresh.pop(), number(rng)
            known.append((key, value, writer.put(b" " + key + b"=") + 4))
            writer.put(value)
        writer.put(b";")
    return writer.finish(length_tokens)


def pairs(rng: Rng, length_tokens: int) -> TaskSample:
    """Blocks of pairs of a key and a value in a random notation, each block asked again in another order.

    Args:
        rng: The source of randomness.
        length_tokens: The number of tokens.

    Returns:
        The sample; the answers are the values that are asked again.
    """
    writer = Writer()
    joint, end = _JOINTS[int(rng.integers(len(_JOINTS)))], _ENDS[int(rng.integers(len(_ENDS)))]
    draw = (word, number, symbols)[int(rng.integers(3))]
    most = max(3, min(300, length_tokens // (2 * (5 + len(joint) + len(end)))))
    while writer.length < length_tokens:
        count = int(np.exp(rng.uniform(np.log(2), np.log(most + 1))))
        known = []
        for key in keys(rng, count):
            value = draw(rng, 3)
            known.append((key, value, writer.put(key + joint) + len(key + joint)))
            writer.put(value + end)
        for index in rng.permutation(count):
            key, value, source = known[int(index)]
            writer.put(key + joint)
            writer.answer(value, source)
            writer.put(end)
    return writer.finish(length_tokens)


def dictionary(rng: Rng, length_tokens: int) -> TaskSample:
    """A Python dictionary, followed by look-ups whose values are written as comments.

    Args:
        rng: The source of randomness.
        length_tokens: The number of tokens.

    Returns:
        The sample; the answers are the values in the comments.
    """
    writer, name = Writer(), word(rng, 1)
    writer.put(name + b" = {")
    known = []
    for key in keys(rng, max(2, min(600, length_tokens // 24))):
        source = writer.put(b'"' + key + b'": ') + 6
        known.append((key, number(rng), source))
        writer.put(known[-1][1] + b", ")
    writer.put(b"}\n")
    while writer.length < length_tokens:
        key, value, source = known[int(rng.integers(len(known)))]
        writer.put(name + b'["' + key + b'"]  # ')
        writer.answer(value, source)
        writer.put(b"\n")
    return writer.finish(length_tokens)


def needle(rng: Rng, length_tokens: int, *, split: Split = "train", count: int = 3) -> TaskSample:
    """Facts hidden at random places in prose, asked again at the end.

    Args:
        rng: The source of randomness.
        length_tokens: The number of tokens.
        split: The part of the corpus that gives the prose.
        count: The number of facts; fewer where the context is short.

    Returns:
        The sample; the answers are the values asked at the end.
    """
    count = max(1, min(count, length_tokens // 64))
    record = 23
    room = max(0, length_tokens - 2 * count * record)
    filler = excerpt(rng, "prose", room, split)
    cuts = [0, *sorted(int(cut) for cut in rng.integers(0, room + 1, count)), room]
    writer, known = Writer(), []
    for index, key in enumerate(keys(rng, count)):
        writer.put(filler[cuts[index] : cuts[index + 1]])
        value = number(rng)
        source = writer.put(b"\nThe key of " + key + b" is ") + 18
        known.append((key, value, source))
        writer.put(value + b".\n")
    writer.put(filler[cuts[-2] :])
    for index in rng.permutation(count):
        key, value, source = known[int(index)]
        writer.put(b"\nThe key of " + key + b" is ")
        writer.answer(value, source)
        writer.put(b".\n")
    return writer.finish(length_tokens)


def dialogue(rng: Rng, length_tokens: int) -> TaskSample:
    """A talk in which people state numbers and are asked for them turns later.

    Args:
        rng: The source of randomness.
        length_tokens: The number of tokens.

    Returns:
        The sample; the answers are the numbers given back.
    """
    writer = Writer()
    pairs = [(name, topic) for name in _NAMES for topic in _TOPICS]
    fresh = [pairs[int(index)] for index in rng.permutation(len(pairs))]
    known: list[tuple[tuple[str, str], bytes, int]] = []
    while writer.length < length_tokens:
        draw = rng.random()
        if known and (not fresh or draw < 0.45):
            (name, topic), value, source = known[int(rng.integers(len(known)))]
            writer.put(f"Q: What is the {topic} of {name}? A: The {topic} of {name} is ".encode())
            writer.answer(value, source)
            writer.put(b".\n")
        elif fresh and draw < 0.9:
            (name, topic), value = fresh.pop(), number(rng)
            stated = f"{name}: The {topic} of {name} is ".encode()
            known.append(((name, topic), value, writer.put(stated) + len(stated)))
            writer.put(value + b".\n")
        else:
            writer.put(f"{_NAMES[int(rng.integers(len(_NAMES)))]}: I see. Let us go on.\n".encode())
    return writer.finish(length_tokens)


def prose(rng: Rng, length_tokens: int, *, split: Split = "train") -> TaskSample:
    """An excerpt of prose; no token is marked as an answer.

    Args:
        rng: The source of randomness.
        length_tokens: The number of tokens.
        split: The part of the corpus.

    Returns:
        The sample.
    """
    return plain(excerpt(rng, "prose", length_tokens, split))


def code(rng: Rng, length_tokens: int, *, split: Split = "train") -> TaskSample:
    """An excerpt of Python code; no token is marked as an answer.

    Args:
        rng: The source of randomness.
        length_tokens: The number of tokens.
        split: The part of the corpus.

    Returns:
        The sample.
    """
    return plain(excerpt(rng, "code", length_tokens, split))


def regime(rng: Rng, length_tokens: int) -> TaskSample:
    """A context whose nature changes: two to four stretches, each of another task.

    Args:
        rng: The source of randomness.
        length_tokens: The number of tokens.

    Returns:
        The sample, with the answers of all its stretches.
    """
    stretches = int(rng.integers(2, 5))
    parts: tuple[Task, ...] = (copy, facts, dictionary, dialogue, prose, code)
    writer = Writer()
    for index in rng.permutation(len(parts))[:stretches]:
        writer.append(parts[int(index)](rng, length_tokens // stretches))
    writer.append(prose(rng, length_tokens - writer.length))
    return writer.finish(length_tokens)


Task = Callable[[Rng, int], TaskSample]

TASKS: dict[str, Task] = {
    "copy": copy,
    "facts": facts,
    "pairs": pairs,
    "needle": needle,
    "dictionary": dictionary,
    "dialogue": dialogue,
    "prose": prose,
    "code": code,
    "regime": regime,
}
