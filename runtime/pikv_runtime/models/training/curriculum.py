"""The curriculum: which contexts are drawn in which stage of the training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .tasks import TASKS


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum: a length, a batch, a mixture, and the share of time at which it ends."""

    length: int
    rows: int
    mixture: dict[str, float]
    until: float


# No "facts" until recall has formed: the latest value of a dense stream is too tempting a guess.
_FORMING = {"copy": 0.24, "pairs": 0.6, "prose": 0.08, "code": 0.08}
_MIXED = {"copy": 0.1, "pairs": 0.15, "facts": 0.2, "dictionary": 0.1, "dialogue": 0.1, "needle": 0.08}
_MIXED |= {"prose": 0.13, "code": 0.14}
_LONG = {"copy": 0.06, "pairs": 0.1, "facts": 0.18, "dictionary": 0.1, "dialogue": 0.08, "needle": 0.12}
_LONG |= {"prose": 0.18, "code": 0.18}

STAGES = (
    Stage(128, 24, _FORMING, 0.25),
    Stage(192, 16, _FORMING, 0.5),
    Stage(384, 8, _MIXED, 0.64),
    Stage(768, 5, _MIXED, 0.78),
    Stage(1536, 3, _LONG, 0.9),
    Stage(2560, 2, _LONG, 1.0),
)
REVISITED = STAGES[2:]


def draw_batch(rng: np.random.Generator, stage: Stage) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Draw the contexts of one step.

    Args:
        rng: The source of randomness.
        stage: The stage of the curriculum.

    Returns:
        The token ids and the answer mask, both of shape (rows, length), and the task of each row.
    """
    names = [str(name) for name in rng.choice(list(stage.mixture), stage.rows, p=list(stage.mixture.values()))]
    samples = [TASKS[name](rng, stage.length) for name in names]
    ids = torch.from_numpy(np.stack([sample.ids for sample in samples]))
    mask = torch.from_numpy(np.stack([sample.answer_mask for sample in samples]))
    return ids, mask, names
