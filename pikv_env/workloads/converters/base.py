"""What a converter to the Mooncake line format is, its options, and what all of them do alike."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pikv_env.workloads.mooncake import MooncakeRecord
from pikv_runtime.registry import Registry

Rng = np.random.Generator


class ConversionError(ValueError):
    """A source that cannot be converted; the message names file, line and reason."""


@dataclass(frozen=True)
class ConvertOptions:
    """What to take from a source, and what to add where the source does not say it."""

    seed: int = 0
    """Of everything that is drawn."""
    start_s: float = 0.0
    """Begin of the window, seconds after the source's first moment."""
    duration_s: float | None = None
    """Length of the window; None: to the end of the source."""
    max_requests: int | None = None
    """Take only so many requests, the first of the window."""
    block_tokens: int = 512
    """Tokens of one hash id in the result."""
    tenants: int = 0
    """Sources without prefix hashes: requests belong to so many tenants that share a prefix; 0: nothing is shared."""
    tenant_tokens: int = 1024
    """Length of that prefix."""
    tenant_zipf: float = 1.0
    """Exponent of the tenants' sizes."""
    session_gap_s: float = 30.0
    """Sources of sessions without a common clock: mean time between the starts of two sessions."""
    rate_per_s: float | None = None
    """Statistical sources: mean rate over the window; None: the source's own."""

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < np.inf or (self.duration_s is not None and not self.duration_s > 0):
            raise ValueError(f"start_s={self.start_s}, duration_s={self.duration_s}: allowed start >= 0, duration > 0")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must not be negative")
        if self.max_requests is not None and self.max_requests < 1:
            raise ValueError(f"max_requests={self.max_requests}: must be at least 1")
        if self.block_tokens < 1 or self.tenants < 0 or self.tenant_tokens < 1 or self.tenant_zipf < 0:
            raise ValueError(
                f"block_tokens={self.block_tokens}, tenants={self.tenants}, tenant_tokens={self.tenant_tokens}, "
                f"tenant_zipf={self.tenant_zipf}: allowed >= 1, >= 0, >= 1, >= 0"
            )
        if self.tenants and self.tenant_tokens < self.block_tokens:
            raise ValueError(
                f"tenant_tokens={self.tenant_tokens}: tenants share whole blocks, so at least block_tokens="
                f"{self.block_tokens}"
            )
        if not self.session_gap_s > 0 or (self.rate_per_s is not None and not self.rate_per_s > 0):
            raise ValueError(f"session_gap_s={self.session_gap_s}, rate_per_s={self.rate_per_s}: must be positive")

    @property
    def end_s(self) -> float:
        """End of the window, seconds; infinite where it has none."""
        return np.inf if self.duration_s is None else self.start_s + self.duration_s


Converter = Callable[[Path, ConvertOptions], Iterable[MooncakeRecord]]
"""Reads a source whole; records may come in any order, their hash ids are any distinct integers."""

CONVERTERS: Registry[Converter] = Registry("trace format")

_TENANTS = ("tenants", "tenant_tokens", "tenant_zipf")
_READ_BY = {"azure": _TENANTS, "servegen": (*_TENANTS, "rate_per_s"), "weka": ("session_gap_s",), "mooncake": ()}
"""Options beside window, seed and block size that a format reads."""


def convert(name: str, source: str | Path, options: ConvertOptions) -> list[MooncakeRecord]:
    """Read a source and return the window that `options` ask for.

    Args:
        name: A name in `CONVERTERS`.
        source: File or folder.
        options: Window, seed and what the source does not say.

    Returns:
        Records by time, the first stamp at the begin of the window being 0.

    Raises:
        ConversionError: On the first line that is wrong, or where the window is empty.
        ValueError: An option is given that the format has no use for.
        UnknownNameError: No such format.
    """
    read = CONVERTERS[name]
    _check_read(name, options)
    start, end = options.start_s * 1000, options.end_s * 1000
    found = [r for r in read(Path(source), options) if start <= r.timestamp_ms < end]
    if not found:
        raise ConversionError(f"{source}: no request from {options.start_s:g} s to {options.end_s:g} s")
    found = sorted(found, key=lambda record: record.timestamp_ms)[: options.max_requests]
    return [MooncakeRecord(r.timestamp_ms - start, r.input_length, r.output_length, r.hash_ids) for r in found]


def _check_read(name: str, options: ConvertOptions) -> None:
    """Raise ValueError for an option that this format would pass over in silence."""
    for option in (*_TENANTS, "session_gap_s", "rate_per_s"):
        value = getattr(options, option)
        if value != getattr(ConvertOptions, option) and option not in _READ_BY.get(name, (option,)):
            users = ", ".join(format for format, read in _READ_BY.items() if option in read)
            raise ValueError(f"{option}={value}: of no use to {name}, only to {users}")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file, plain or `.gz`, with their numbers from 1; raises ConversionError where unreadable."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from enumerate((line.rstrip("\r\n") for line in file), 1)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: cannot be read ({error})") from error


def invented_ids(lengths: NDArray[np.int64], options: ConvertOptions) -> list[tuple[int, ...]]:
    """Hash ids for prompts of which only the length is known.

    Every block is its request's own, but for `tenant_tokens` in front where there are tenants.

    Args:
        lengths: Prompt tokens, (R,).
        options: Tenants, block size and seed.

    Returns:
        Ids of each prompt, distinct integers.
    """
    rng = np.random.default_rng([options.seed, 0x54454E41])
    weights = np.arange(1, options.tenants + 1, dtype=np.float64) ** -options.tenant_zipf
    tenant = rng.choice(options.tenants, len(lengths), p=weights / weights.sum()) if options.tenants else None
    prefix = options.tenant_tokens // options.block_tokens if options.tenants else 0
    next_id, found = options.tenants * prefix, []
    for at, length in enumerate(lengths.tolist()):
        blocks = -(-length // options.block_tokens)
        # A shared block lies wholly inside the prompt, so the last, partial one is never shared.
        shared = min(prefix, length // options.block_tokens)
        first = int(tenant[at]) * prefix if tenant is not None else 0
        found.append((*range(first, first + shared), *range(next_id, next_id + blocks - shared)))
        next_id += blocks - shared
    return found
