"""What the study serves: texts whose continuation is known, with the answers in it that lie far back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from pikv_runtime.models.training.samples import Rng, TaskSample
from pikv_runtime.models.training.tasks import TASKS, Task, code, needle, prose
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.requests import Request

FAR_TOKENS = 96
"""An answer is far if its fact stands at least so many tokens back: outside sinks and recent window for sure."""
NEEDLE_TAIL = 72
"""Tokens of the questions with which a needle context ends."""

KINDS: dict[str, Task] = {
    **TASKS,
    "needle": partial(needle, split="heldout"),
    "prose": partial(prose, split="heldout"),
    "code": partial(code, split="heldout"),
}


@dataclass(frozen=True)
class Probe:
    """One request, teacher-forced along its own text."""

    request: Request
    kind: str
    answers: tuple[tuple[int, int], ...]
    """(start, end) of every far answer, counted in output tokens."""


def build_probes(kinds: dict[str, int], prompt_tokens: int, output_tokens: int, seed: int) -> list[Probe]:
    """`kinds[name]` probes of every kind, all arriving at time 0; the same arguments give the same probes.

    Raises:
        UnknownNameError: no such kind.
    """
    probes: list[Probe] = []
    for at, (kind, count) in enumerate(kinds.items()):
        if kind not in KINDS:
            raise UnknownNameError("kind", kind, sorted(KINDS))
        rng = np.random.default_rng([seed, at])
        for _ in range(count):
            probes.append(_probe(len(probes), kind, rng, prompt_tokens, output_tokens))
    return probes


def _probe(number: int, kind: str, rng: Rng, prompt_tokens: int, output_tokens: int) -> Probe:
    length = prompt_tokens + output_tokens
    sample: TaskSample = KINDS[kind](rng, length)
    output = min(output_tokens, NEEDLE_TAIL) if kind == "needle" else output_tokens
    prompt = length - output
    ids = sample.ids.astype(np.int32)
    request = Request(
        number, 0.0, prompt, output,
        np.zeros(length // 16 + 1, np.int64),  # zero: nothing is shared between probes
        content=number, prompt_ids=ids[:prompt], exact_ids=ids[prompt:],
    )  # fmt: skip
    far = tuple(
        (a.start - prompt, a.end - prompt) for a in sample.answers if a.start > prompt and a.distance >= FAR_TOKENS
    )
    return Probe(request, kind, far)
