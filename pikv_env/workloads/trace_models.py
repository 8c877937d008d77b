"""Generators of traces in the Mooncake line format: sessions whose prompts grow, drawn from a few distributions.

The traces that come with the package are drawn by them (`pikv workloads generate`); no request of anybody is in them.
Parameters are set so that the statistics come near those of public traces; docs/workloads.md has the comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pikv_env.workloads.mooncake import MooncakeRecord
from pikv_runtime.registry import Registry

Rng = np.random.Generator


@dataclass(frozen=True)
class Mixture:
    """A mixture of lognormal distributions: (weight, median, standard deviation of the logarithm) each."""

    parts: tuple[tuple[float, float, float], ...]

    def __call__(self, rng: Rng, count: int) -> NDArray[np.float64]:
        """Draw `count` values."""
        weights, medians, sigmas = (np.array(column) for column in zip(*self.parts, strict=True))
        part = rng.choice(len(weights), count, p=weights / weights.sum())
        return medians[part] * np.exp(sigmas[part] * rng.standard_normal(count))


@dataclass(frozen=True)
class SessionTrace:
    """Sessions of tenants: each prompt is the one before, the answer to it, and something new."""

    description: str
    session_gap_s: float
    """Mean time between the starts of two sessions."""
    turns: Mixture
    gap_s: Mixture
    """Between two requests of a session."""
    first: Mixture
    """Prompt tokens of a session's first request, its tenant's prefix included."""
    added: Mixture
    """Tokens that a turn adds besides the answer before it."""
    output: Mixture
    tenants: int
    """Tenants, by Zipf's law with exponent 1."""
    prefix: tuple[int, int]
    """Fewest and most blocks of a tenant's prefix."""
    block_tokens: int
    limit_tokens: int
    """Where a prompt would grow beyond, the session is compacted."""
    compacted: float = 0.3
    """Prompt after that over the limit."""
    duration_s: float = 1800.0
    before_s: float = 3600.0
    """Sessions started so long before the trace begins, so that some are under way."""

    def records(self, seed: int) -> list[MooncakeRecord]:
        """Draw the trace; records by time, hash ids distinct integers."""
        rng = np.random.default_rng([seed, 0x54524143])
        span = self.before_s + self.duration_s
        starts = np.sort(rng.uniform(0, span, rng.poisson(span / self.session_gap_s))) - self.before_s
        weights = 1 / np.arange(1, self.tenants + 1)
        tenant = rng.choice(self.tenants, len(starts), p=weights / weights.sum()).tolist()
        prefix = rng.integers(self.prefix[0], self.prefix[1] + 1, self.tenants).tolist()
        found: list[MooncakeRecord] = []
        for number, start in enumerate(starts.tolist()):
            shared = [-1 - tenant[number] * 2**20 - j for j in range(prefix[tenant[number]])]
            found += self._session(rng, number, start, shared)
        return sorted(found, key=lambda record: record.timestamp_ms)

    def _session(self, rng: Rng, number: int, at: float, shared: list[int]) -> Iterator[MooncakeRecord]:
        """Requests of one session that fall into the trace."""
        turns = max(1, round(float(self.turns(rng, 1)[0])))
        gaps, added, outputs = (draw(rng, turns) for draw in (self.gap_s, self.added, self.output))
        prompt = max(float(self.first(rng, 1)[0]), len(shared) * self.block_tokens + 1)
        tape, fresh = number * 2**24, 0
        for gap, new, output in zip(gaps.tolist(), added.tolist(), outputs.tolist(), strict=True):
            if prompt > self.limit_tokens:
                prompt, tape = self.compacted * self.limit_tokens, tape + 2**12
            length, answer = max(1, round(prompt)), max(1, round(output))
            if 0 <= at < self.duration_s:
                whole = length // self.block_tokens
                ids = [*shared[:whole], *range(tape + len(shared), tape + whole)]
                if length % self.block_tokens:  # the partial last block is this request's own
                    ids, fresh = [*ids, number * 2**24 + 2**23 + fresh], fresh + 1
                yield MooncakeRecord(at * 1000, length, answer, tuple(ids))
            prompt, at = length + answer + new, at + gap


TRACE_MODELS: Registry[SessionTrace] = Registry("trace model")
TRACE_MODELS.add(
    "conversation",
    SessionTrace(
        description="chat: many short sessions, minutes to think, one short system prompt",
        session_gap_s=1.75,
        turns=Mixture(((1.0, 1.1, 0.8),)),
        gap_s=Mixture(((1.0, 125.0, 1.0),)),
        first=Mixture(((1.0, 5800.0, 1.2),)),
        added=Mixture(((0.85, 60.0, 1.2), (0.15, 4000.0, 1.0))),
        output=Mixture(((0.2, 20.0, 0.8), (0.8, 390.0, 0.4))),
        tenants=1,
        prefix=(1, 1),
        block_tokens=512,
        limit_tokens=120_000,
    ),
)
TRACE_MODELS.add(
    "agent-loop",
    SessionTrace(
        description="coding agents: long sessions, seconds between tool calls, long prompts, compacted at a limit",
        session_gap_s=75.0,
        turns=Mixture(((1.0, 31.0, 1.3),)),
        gap_s=Mixture(((0.85, 17.0, 0.65), (0.15, 150.0, 1.1))),
        first=Mixture(((0.5, 21_000.0, 0.3), (0.5, 115_000.0, 0.6))),
        added=Mixture(((1.0, 330.0, 1.6),)),
        output=Mixture(((1.0, 255.0, 0.8),)),
        tenants=6,
        prefix=(3, 8),
        block_tokens=2048,
        limit_tokens=300_000,
    ),
)
