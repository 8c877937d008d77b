"""Late binding: a page's tag is the majority of its tokens' top experts, known once they all are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I1 = NDArray[np.int8]


class OpenPageChoices:
    """Top experts of the tokens of every slot's open page, and of the pages that just filled."""

    def __init__(self, layers: int, experts: int, page_tokens: int) -> None:
        self._experts, self._page_tokens = experts, page_tokens
        self._choices = np.full((0, layers, page_tokens), -1, np.int8)

    def add(self, slot: int, start: int, chosen: I1) -> I1:
        """Add tokens from position `start` on, chosen (L, n); returns tags (pages, L) of the pages they
        fill."""
        self._reach(slot)
        size = self._page_tokens
        before, buffer = start % size, self._choices[slot]
        line = np.concatenate([buffer[:, :before], chosen], axis=1)
        full = line.shape[1] // size
        rest = line[:, full * size :]
        buffer[:, : rest.shape[1]] = rest
        if full == 0:
            return np.zeros((0, len(line)), np.int8)
        return self._majority(line[:, : full * size].reshape(len(line), full, size)).T

    def _majority(self, pages: I1) -> I1:
        """Most frequent expert of each page, pages (L, n, page_tokens) -> (L, n); ties to the lower id."""
        counts = (pages[..., None] == np.arange(self._experts)).sum(2)
        return counts.argmax(-1).astype(np.int8)

    def _reach(self, slot: int) -> None:
        have = len(self._choices)
        if slot >= have:
            more = np.full((slot + 1 - have, *self._choices.shape[1:]), -1, np.int8)
            self._choices = np.concatenate([self._choices, more])
