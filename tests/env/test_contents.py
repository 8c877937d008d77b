"""Contents: prompts that keep their promises."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest

from pikv_env.workloads.content import KINDS, OUTPUT_RANGE, PROMPT_RANGE, SESSION_KINDS, build_contents
from pikv_runtime.registry import UnknownNameError


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_contents_keep_their_promises(kind: str) -> None:
    contents = build_contents(kind, 30, seed=1)
    assert len(contents) == 30
    groups = defaultdict(list)
    for spec in contents:
        assert PROMPT_RANGE[0] <= len(spec.ids) <= PROMPT_RANGE[1]
        assert OUTPUT_RANGE[0] <= spec.output_tokens <= OUTPUT_RANGE[1]
        assert spec.ids.dtype == np.int32 and spec.ids.min() >= 0 and spec.ids.max() < 256
        assert spec.family == kind and 0 <= spec.shared_tokens < len(spec.ids)
        groups[spec.group].append(spec)
    assert len(groups) == 8
    for rows in groups.values():
        for before, after in pairwise(rows):
            assert np.array_equal(before.ids[: after.shared_tokens], after.ids[: after.shared_tokens])
            if kind in SESSION_KINDS:
                assert after.turn == before.turn + 1 and after.shared_tokens == len(before.ids)
            else:
                assert after.turn == before.turn == 0 and after.shared_tokens == before.shared_tokens


def test_contents_are_deterministic() -> None:
    a, b, c = (build_contents("facts", 6, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(x.ids, y.ids) and x.output_tokens == y.output_tokens for x, y in zip(a, b, strict=True))
    assert any(not np.array_equal(x.ids, y.ids) for x, y in zip(a, c, strict=True))
    assert len({spec.ids.tobytes() for spec in a}) > 3, "the questions of a document do not differ"


@pytest.mark.parametrize("kind", ["facts", "needle", "dialogue", "dictionary"])
def test_questions_ask_for_what_stands_far_back(kind: str) -> None:
    distances = []
    for spec in build_contents(kind, 20, seed=3):
        prompt = spec.ids.astype(np.uint8).tobytes()
        cue = {"facts": prompt[-3:], "dictionary": prompt[-8:-6]}.get(kind, prompt[-17:])
        first = prompt.find(cue)
        assert 0 <= first < len(prompt) - len(cue), prompt[-60:]
        distances.append(1 - first / len(prompt))
    assert np.median(distances) > 0.4


def test_contents_refuse_bad_arguments() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'facts'"):
        build_contents("fact", 1, seed=0)
    with pytest.raises(ValueError, match="prompt_range"):
        build_contents("facts", 1, seed=0, prompt_range=(10, 20))
    with pytest.raises(ValueError, match="too narrow for dialogues"):
        build_contents("dialogue", 4, seed=0, prompt_range=(128, 400))
    with pytest.raises(ValueError, match="output_range"):
        build_contents("facts", 1, seed=0, output_range=(0, 20))
