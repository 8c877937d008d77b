"""ServeGen's clients (arXiv 2505.09999): a statistical model, from which requests are drawn.

A folder, or a tar file of one, with two files for each client N: `chunk-N-trace.csv`, a line for each window of ten
minutes (begin in seconds, requests per second, CV of the gaps, family of their distribution, its shape and scale),
and `chunk-N-dataset.json`, for each window of six hours the shares of prompt and output lengths.

In each window the count follows the rate, and the gaps the family with its shape, stretched to the window. There are
no prefix hashes: every prompt is its request's own, unless the options name tenants. Clients without lengths, which
some copies lack, cannot be drawn and are left out.
"""

from __future__ import annotations

import ast
import json
import re
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_env.workloads.converters.base import CONVERTERS, ConversionError, ConvertOptions, Rng, invented_ids
from pikv_env.workloads.mooncake import MooncakeRecord

WINDOW_S = 600.0
MOST_REQUESTS = 2_000_000
_FILE = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)")
Gaps = Callable[[Rng, float, int], NDArray[np.float64]]
FAMILIES: dict[str, Gaps] = {
    "Gamma": lambda rng, shape, count: rng.gamma(shape, 1.0, count),
    "Weibull": lambda rng, shape, count: rng.weibull(shape, count),
    "Exponential": lambda rng, shape, count: rng.exponential(1.0, count),
}
Lengths = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Lengths and their shares."""


@dataclass(frozen=True)
class Window:
    """Ten minutes of a client."""

    begin_s: float
    rate_per_s: float
    family: str
    shape: float


def read(source: Path, options: ConvertOptions) -> Iterator[MooncakeRecord]:
    """Requests drawn from all clients within the window of the options."""
    files = _files(source)
    clients = {number: f for number, f in sorted(files.items()) if set(f) == {"trace.csv", "dataset.json"}}
    if not clients:
        raise ConversionError(f"{source}: holds no client with chunk-N-trace.csv and chunk-N-dataset.json")
    windows = {number: _windows(*f["trace.csv"], options) for number, f in clients.items()}
    expected = sum(w.rate_per_s for of in windows.values() for w in of) * WINDOW_S
    thinner = 1.0
    if options.rate_per_s is not None and expected:
        begins = [w.begin_s for of in windows.values() for w in of]
        thinner = options.rate_per_s * (max(begins) + WINDOW_S - min(begins)) / expected
    if expected * thinner > MOST_REQUESTS:
        raise ConversionError(
            f"{source}: about {expected * thinner:.3g} requests, allowed {MOST_REQUESTS}: ask for a shorter duration "
            f"or a lower rate"
        )
    rng = np.random.default_rng([options.seed, 0x53455256])
    drawn = [_client(rng, windows[n], thinner, *f["dataset.json"]) for n, f in clients.items() if windows[n]]
    times, prompts, outputs = (np.concatenate([d[k] for d in drawn] or [np.zeros(0)]) for k in range(3))
    ids = invented_ids(prompts.astype(np.int64), options)
    for at, prompt, output, blocks in zip(times.tolist(), prompts.tolist(), outputs.tolist(), ids, strict=True):
        yield MooncakeRecord(at * 1000, int(prompt), int(output), blocks)


def _files(source: Path) -> dict[int, dict[str, tuple[str, str]]]:
    """Per client: its files by kind, each with where it stands and its text."""
    found: dict[int, dict[str, tuple[str, str]]] = {}
    try:
        if source.is_dir():
            entries = [(path.name, path.read_text(encoding="utf-8")) for path in source.glob("chunk-*")]
        else:
            with tarfile.open(source) as tar:
                members = [m for m in tar if m.isfile() and _FILE.fullmatch(PurePath(m.name).name)]
                read = [(PurePath(m.name).name, tar.extractfile(m)) for m in members]
                entries = [(name, file.read().decode()) for name, file in read if file is not None]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, tarfile.TarError) as error:
        raise ConversionError(f"{source}: cannot be read ({error})") from error
    for name, text in entries:
        if match := _FILE.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = (f"{source}/{name}", text)
    return found


def _windows(where: str, text: str, options: ConvertOptions) -> list[Window]:
    """The client's windows that have requests and overlap the asked one."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split(",")
        try:
            begin, rate, _, family, shape, _ = (c if i == 3 else float(c) for i, c in enumerate(cells))
        except ValueError as error:
            raise ConversionError(f"{where}:{number}: expected begin,rate,cv,family,shape,scale ({error})") from error
        assert isinstance(begin, float) and isinstance(rate, float) and isinstance(shape, float)
        if not (0 <= begin < np.inf and 0 <= rate < np.inf):
            raise ConversionError(f"{where}:{number}: begin={begin} and rate={rate} must be finite and not negative")
        if rate and (family not in FAMILIES or not 0 < shape < np.inf):
            raise ConversionError(f"{where}:{number}: family={family!r}, shape={shape}: allowed {', '.join(FAMILIES)}")
        if rate and begin + WINDOW_S > options.start_s and begin < options.end_s:
            found.append(Window(begin, rate, str(family), shape))
    return found


def _client(
    rng: Rng, windows: list[Window], thinner: float, where: str, text: str
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Times, prompt and output lengths of one client's requests; each (R,)."""
    lengths = _Lengths(where, text)
    parts: list[tuple[Any, ...]] = [(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for window in windows:
        count = int(window.rate_per_s * thinner * WINDOW_S + rng.random())
        pair = lengths.at(window.begin_s)
        if not count or any(not len(values) for values, _ in pair):
            continue  # a window whose lengths are not told
        edges = np.cumsum(FAMILIES[window.family](rng, window.shape, count + 1))
        # A window is a cut of a longer stream, so its first gap is already under way.
        times = (edges[:-1] - rng.random() * edges[0]) / edges[-1] * WINDOW_S
        prompts, outputs = (rng.choice(values, count, p=shares) for values, shares in pair)
        parts.append((window.begin_s + times, np.maximum(prompts, 1), outputs))
    times, prompts, outputs = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return times, prompts, outputs


class _Lengths:
    """Prompt and output lengths of a client by the begin of their window, each parsed when first asked for."""

    def __init__(self, where: str, text: str) -> None:
        self.where, self.parsed = where, dict[float, tuple[Lengths, Lengths]]()
        try:
            self.windows: dict[float, Any] = {float(begin): window for begin, window in json.loads(text).items()}
        except json.JSONDecodeError as error:
            raise ConversionError(f"{where}:{error.lineno}: not JSON ({error.msg})") from error
        except (ValueError, AttributeError) as error:
            raise ConversionError(f"{where}: expected an object of windows by their begin in seconds") from error
        self.begins = sorted(self.windows)

    def at(self, time_s: float) -> tuple[Lengths, Lengths]:
        """Prompt and output lengths at a time; none before the first window."""
        place = bisect_right(self.begins, time_s) - 1
        if place < 0:
            return _shares({}), _shares({})
        begin = self.begins[place]
        if begin not in self.parsed:
            try:
                window = self.windows[begin]
                self.parsed[begin] = _shares(window["input_tokens"]), _shares(window["output_tokens"])
            except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
                raise ConversionError(
                    f"{self.where}: window {begin:g}: input_tokens and output_tokens must be histograms ({error})"
                ) from error
        return self.parsed[begin]


def _shares(value: Any) -> Lengths:
    """A histogram `{length: share}`, as an object or as the text of one."""
    table = ast.literal_eval(value) if isinstance(value, str) else value
    sizes, shares = np.array([int(k) for k in table], np.int64), np.array([float(v) for v in table.values()])
    if len(sizes) and (sizes.min() < 0 or shares.min() < 0 or not shares.sum() > 0):
        raise ValueError("lengths and shares must not be negative")
    return sizes, shares / shares.sum() if len(sizes) else shares


CONVERTERS.add("servegen", read)
