"""Contents: the prompts of a kind, as documents with several questions or as dialogues with several turns.

The texts come from the tasks of the embedded model; prose and code are cut from files that its training never
saw. Tokens are bytes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pikv_env.workloads.questions import ask, last_answer
from pikv_runtime.models.training.tasks import TASKS, Task, code, needle, prose
from pikv_runtime.registry import UnknownNameError

Rng = np.random.Generator

PROMPT_RANGE = (128, 1200)  # tokens
OUTPUT_RANGE = (16, 160)  # tokens
QUESTION_ROOM = 64  # tokens kept free at the end of a prompt
LONGEST_TURN = 128  # tokens of the shortest step between two turns: an answer, a line, a question
SESSION_KINDS = ("dialogue",)

KINDS: dict[str, Task] = {
    **TASKS,
    "needle": partial(needle, split="heldout"),
    "prose": partial(prose, split="heldout"),
    "code": partial(code, split="heldout"),
}


@dataclass(frozen=True)
class ContentSpec:
    """One prompt to record: what the exact run is asked, and with whom the prompt shares its beginning."""

    ids: NDArray[np.int32]
    """Prompt, (prompt_tokens,)."""
    output_tokens: int
    family: str
    """Content kind."""
    group: int
    """Document or dialogue inside the kind."""
    turn: int
    shared_tokens: int
    """Length of the document, or of the previous turn's prompt."""


def build_contents(
    kind: str,
    count: int,
    seed: int,
    *,
    per_group: int = 4,
    prompt_range: tuple[int, int] = PROMPT_RANGE,
    output_range: tuple[int, int] = OUTPUT_RANGE,
) -> list[ContentSpec]:
    """Build `count` contents of one kind; the same arguments give the same contents.

    Args:
        kind: A name in `KINDS`.
        count: Number of contents.
        seed: Seed; kinds draw independently of each other.
        per_group: Questions of a document, or turns of a dialogue.
        prompt_range: Shortest and longest prompt, tokens.
        output_range: Shortest and longest output, tokens.

    Returns:
        The contents, group by group, turns in order; the last group may be shorter.
    """
    if kind not in KINDS:
        raise UnknownNameError("content kind", kind, sorted(KINDS))
    if count < 0 or per_group < 1:
        raise ValueError(f"count={count} and per_group={per_group}: at least 0 and at least 1")
    if prompt_range[0] < QUESTION_ROOM + 1 or prompt_range[1] < prompt_range[0] + 2 * QUESTION_ROOM:
        raise ValueError(f"prompt_range={prompt_range}: low over {QUESTION_ROOM}, high {2 * QUESTION_ROOM} above it")
    if output_range[0] < 1 or output_range[1] < output_range[0]:
        raise ValueError(f"output_range={output_range}: low must be at least 1 and not above high")
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    build = _dialogue if kind in SESSION_KINDS else _document
    contents: list[ContentSpec] = []
    for group in range(-(-count // per_group)):
        for turn, (prompt, shared) in enumerate(build(rng, kind, per_group, prompt_range)):
            output = log_uniform(rng, output_range)
            turn = turn if kind in SESSION_KINDS else 0
            ids = np.frombuffer(prompt, np.uint8).astype(np.int32)
            contents.append(ContentSpec(ids, output, kind, group, turn, shared))
    return contents[:count]


def log_uniform(rng: Rng, bounds: tuple[int, int]) -> int:
    """An integer whose logarithm is uniform between `bounds`, both included."""
    return min(bounds[1], int(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1] + 1)))))


def _text(rng: Rng, kind: str, length: int) -> bytes:
    """About `length` bytes of a kind, at most, cut after a record or line where one ends near."""
    sample = KINDS[kind](rng, length + (3 * QUESTION_ROOM if kind == "needle" else 0))
    # The needle task asks its own questions at the end: they go, the facts stay.
    text = sample.ids[:length].astype(np.uint8).tobytes()
    end = max(text.rfind(b";"), text.rfind(b"\n")) + 1
    return text[:end] if end > length - QUESTION_ROOM // 2 else text


def _document(rng: Rng, kind: str, count: int, prompts: tuple[int, int]) -> list[tuple[bytes, int]]:
    """A document with `count` questions: prompts and the length of the document."""
    length = log_uniform(rng, (prompts[0], prompts[1] - 2 * QUESTION_ROOM))
    document = _text(rng, kind, length)
    asked = [document + ask(kind, rng, document) for _ in range(count)]
    short = max(0, prompts[0] - min(len(prompt) for prompt in asked))
    if short:  # a question shorter than the room left below the lower bound: give the document more text
        document = _text(rng, kind, length + short + QUESTION_ROOM // 2)
        asked = [document + ask(kind, rng, document) for _ in range(count)]
    return [(prompt, len(document)) for prompt in asked]


def _dialogue(rng: Rng, kind: str, turns: int, prompts: tuple[int, int]) -> list[tuple[bytes, int]]:
    """A dialogue: each prompt is the one before, its answer, more talk and a new question."""
    high = prompts[1] - QUESTION_ROOM
    room = high - (turns - 1) * LONGEST_TURN
    if prompts[0] + 16 > room:
        raise ValueError(f"prompt_range={prompts} is too narrow for dialogues of {turns} turns: fewer turns, or wider")
    first = log_uniform(rng, (prompts[0] + 16, room))
    last = log_uniform(rng, (first, high))
    text = _text(rng, kind, high)
    said, at, rows = b"", 0, []
    shared = 0
    for length in np.linspace(first, last, turns).astype(int).tolist():
        end = max(at + 1, at + length - len(said))
        end = text.rfind(b"\n", at, end) + 1 or text.find(b"\n", at) + 1 or len(text)
        said, at = said + text[at:end], end
        question = ask(kind, rng, said)
        prompt = said + question
        rows.append((prompt, shared))
        shared = len(prompt)
        said = prompt + (last_answer(said, question) or b"000") + b".\n"
    return rows
