"""What must hold in a trace library: each check names the array, the first bad row and what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.arrays import TraceArrays
from pikv_runtime.requests import chain_hashes

SUM_TOLERANCE = 1e-3
NUM_CODECS = 4


class TraceError(ValueError):
    """A trace library or trace file that cannot be used; the message gives the reason."""


def check_shapes(library: TraceArrays) -> None:
    """Raise TraceError where dimensions disagree."""
    for name in ("page_tokens", "observe_tokens", "layers", "experts"):
        value = getattr(library, name)
        if not isinstance(value, int) or value < 1:
            raise TraceError(f"{name}={value!r}: must be an integer of at least 1")
    if library.mass.ndim != 4:
        raise TraceError(f"mass has {library.mass.ndim} axes, expected (C, O, L, P)")
    c, o, _, pages = library.mass.shape
    per_row = dict.fromkeys(
        ("prompt_tokens", "output_tokens", "family_of", "group_of", "turn_of", "shared_tokens"), (c,)
    )
    expected: dict[str, tuple[int, ...]] = {
        **per_row,
        "mass": (c, o, library.layers, pages),
        "score": (c, o, library.layers, pages),
        "gate": (c, o, library.layers, library.experts),
        "tags": (c, library.layers, pages),
        "error": (c, library.layers, pages, NUM_CODECS),
    }
    for name, shape in expected.items():
        have = getattr(library, name).shape
        if have != shape:
            raise TraceError(f"{name} has shape {have}, expected {shape}")
    for name in ("chain", "token_ids"):
        array = getattr(library, name)
        if array is not None and (array.ndim != 2 or len(array) != c):
            raise TraceError(f"{name} has shape {array.shape}, expected ({c}, …)")


def check_library(library: TraceArrays) -> None:
    """Raise TraceError with the first reason why the values of a library cannot be true."""
    check_shapes(library)
    _check_rows(library)
    _check_numbers(library)
    _check_attention(library)
    _check_tags(library)
    _check_tokens(library)
    _check_chain(library)
    _check_sharing(library)


def _refuse(bad: NDArray[np.bool_], what: str) -> None:
    """Raise TraceError naming the first row in which `bad` (C, …) is true."""
    if bad.any():
        raise TraceError(f"content {int(np.argwhere(bad)[0][0])}: {what}")


def _check_rows(library: TraceArrays) -> None:
    """Lengths, family numbers and capacities of the padded axes."""
    prompt, total = library.prompt_tokens, library.total_tokens
    _refuse((prompt < 1) | (library.output_tokens < 1), "prompt_tokens and output_tokens must be at least 1")
    _refuse(
        (library.family_of < 0) | (library.family_of >= len(library.families)),
        f"family_of out of range, allowed 0..{len(library.families) - 1}",
    )
    _refuse((library.group_of < 0) | (library.turn_of < 0), "group_of and turn_of must not be negative")
    shared = library.shared_tokens
    _refuse((shared < 0) | (shared > prompt), "shared_tokens outside the prompt")
    _refuse(total > library.mass.shape[3] * library.page_tokens, f"{library.mass.shape[3]} pages are too few")
    _refuse(library.observations > library.mass.shape[1], f"{library.mass.shape[1]} observations are too few")
    _refuse(library.num_blocks > library.chain.shape[1], f"{library.chain.shape[1]} chain blocks are too few")
    if library.token_ids is not None:
        _refuse(total > library.token_ids.shape[1], f"{library.token_ids.shape[1]} token ids are too few")


def _check_numbers(library: TraceArrays) -> None:
    """Finite everywhere, and no negative mass, gate or error."""
    for name in ("mass", "score", "gate", "error"):
        array: NDArray[Any] = getattr(library, name)
        _refuse(~np.isfinite(array), f"{name} holds NaN or infinity")
        if name != "score":
            _refuse(array < 0, f"{name} holds a negative value")
    _refuse(library.error[..., 0] != 0, "error of the native codec must be 0")


def _check_attention(library: TraceArrays) -> None:
    """Mass and gate sum to 1 in each observation, and no mass lies beyond the context."""
    seen = np.arange(library.mass.shape[1]) < library.observations[:, None]  # (C, O)
    for name in ("mass", "gate"):
        sums = getattr(library, name).sum(axis=3, dtype=np.float64)  # (C, O, L)
        bad = seen[..., None] & (np.abs(sums - 1) > SUM_TOLERANCE)
        _refuse(bad, f"{name} of an observation does not sum to 1")
    steps = np.arange(library.mass.shape[1]) * library.observe_tokens
    context = library.prompt_tokens[:, None] + steps + 1  # with the token being decoded
    pages = -(-context // library.page_tokens)
    beyond = np.arange(library.mass.shape[3]) >= pages[..., None]  # (C, O, P)
    beyond &= seen[..., None]
    _refuse(beyond[:, :, None, :] & (library.mass > 0), "mass on a page beyond the context")


def _check_tags(library: TraceArrays) -> None:
    """Full pages carry an expert; the last, open one may carry -1."""
    page = np.arange(library.tags.shape[2])
    full = (page < library.num_blocks[:, None])[:, None, :]
    tags = library.tags
    bad = (tags >= library.experts) | (tags < -1) | (full & (tags < 0))
    _refuse(bad, f"tag out of range, allowed 0..{library.experts - 1} on full pages")


def _check_tokens(library: TraceArrays) -> None:
    """Token ids are not negative inside the content and -1 after it."""
    if library.token_ids is None:
        return
    inside = np.arange(library.token_ids.shape[1]) < library.total_tokens[:, None]
    _refuse(inside & (library.token_ids < 0), "negative token id inside the content")
    _refuse(~inside & (library.token_ids != -1), "token ids after the content must be -1")


def _check_chain(library: TraceArrays) -> None:
    """The chain is positive on full blocks, zero after them, and follows from the tokens where known."""
    inside = np.arange(library.chain.shape[1]) < library.num_blocks[:, None]
    _refuse(inside & (library.chain < 1), "chain hash missing on a full block")
    _refuse(~inside & (library.chain != 0), "chain hash beyond the last full block")
    if library.token_ids is None:
        return
    for row, tokens in enumerate(library.token_ids):
        expected = chain_hashes(tokens[: library.total_tokens[row]], library.page_tokens)
        if not np.array_equal(expected, library.chain[row, : len(expected)]):
            raise TraceError(f"content {row}: chain does not follow from token_ids")


def _check_sharing(library: TraceArrays) -> None:
    """Rows agree with their document's first row, or the previous turn, over their shared full blocks."""
    columns = np.stack([library.family_of, library.group_of, library.turn_of], axis=1)
    keys: list[list[int]] = columns.tolist()
    first: dict[tuple[int, ...], int] = {}
    for row, key in enumerate(keys):
        first.setdefault(tuple(key), row)
    for row, (family, group, turn) in enumerate(keys):
        other = first.get((family, group, max(turn - 1, 0)))
        if other is None:
            raise TraceError(f"content {row}: turn {turn} of group {group} without the turn before it")
        blocks = int(library.shared_tokens[row]) // library.page_tokens
        if not np.array_equal(library.chain[row, :blocks], library.chain[other, :blocks]):
            raise TraceError(f"content {row}: its first {blocks} blocks differ from those of content {other}")
