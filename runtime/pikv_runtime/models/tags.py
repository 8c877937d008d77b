"""Late binding: a page's tag is the majority of its tokens' top experts, known once they all are.

Where pages are kept in several copies, further experts follow the tag in the order of how many tokens chose them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I1 = NDArray[np.int8]


class OpenPageChoices:
    """Top experts of the tokens of every slot's open page, and of the pages that just filled."""

    def __init__(self, layers: int, experts: int, page_tokens: int, copies: int = 1) -> None:
        self._experts, self._page_tokens, self._copies = experts, page_tokens, copies
        self._choices = np.full((0, layers, page_tokens), -1, np.int8)

    def add(self, slot: int, start: int, chosen: I1) -> I1:
        """Add tokens from position `start` on, chosen (L, n); returns experts (pages, L, copies) of the pages they
        fill, the tag first, -1 where no token chose another."""
        self._reach(slot)
        size = self._page_tokens
        before, buffer = start % size, self._choices[slot]
        line = np.concatenate([buffer[:, :before], chosen], axis=1)
        full = line.shape[1] // size
        rest = line[:, full * size :]
        buffer[:, : rest.shape[1]] = rest
        if full == 0:
            return np.zeros((0, len(line), self._copies), np.int8)
        return self._most_chosen(line[:, : full * size].reshape(len(line), full, size)).transpose(1, 0, 2)

    def _most_chosen(self, pages: I1) -> I1:
        """Most frequent experts of each page, pages (L, n, page_tokens) -> (L, n, copies); ties to the lower id."""
        counts = (pages[..., None] == np.arange(self._experts)).sum(2)
        if self._copies == 1:
            return counts.argmax(-1, keepdims=True).astype(np.int8)
        order = np.argsort(-counts, axis=-1, kind="stable")[..., : self._copies]
        found = np.where(np.take_along_axis(counts, order, -1) > 0, order, -1)
        spare = self._copies - found.shape[-1]
        return np.pad(found, ((0, 0), (0, 0), (0, max(0, spare))), constant_values=-1).astype(np.int8)

    def _reach(self, slot: int) -> None:
        have = len(self._choices)
        if slot >= have:
            more = np.full((slot + 1 - have, *self._choices.shape[1:]), -1, np.int8)
            self._choices = np.concatenate([self._choices, more])
