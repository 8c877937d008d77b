"""Serving a case packed and spread over ranks, and comparing it with the stock cache, expert choices included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fake_ledger import FakeLedger
from moe_families import DECODED, LAYERS, LENGTHS, Answers, family_model, prompt_ids, routers, stock_answers

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.models.runner import ModelRunner
from pikv_runtime.transport import LocalTransport, Transport

TOLERANCE, TIE = 1e-4, 1e-5
Choices = dict[int, dict[int, torch.Tensor]]


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    family: str
    page_tokens: int = 16
    ranks: int = 1
    chunk: int = 1000
    """Prompt tokens in one forward pass; less than a prompt: chunked prefill."""
    latent: bool = True

    def __str__(self) -> str:
        form = "" if self.latent else "-expanded"
        return f"{self.family}{form}-page{self.page_tokens}-ranks{self.ranks}-chunk{self.chunk}"


@dataclass
class Run:
    """What a case gave, by slot."""

    logits: dict[int, torch.Tensor]
    chosen: Choices
    """Slot -> layer -> (tokens, k): what the gates chose, or would have chosen where choices were forced."""
    runner: ModelRunner


class _Gates:
    """Listens to the gates of one run; forces the stock's choices on them where asked to."""

    def __init__(self, model: Any, forced: dict[int, Answers] | None) -> None:
        self.found: list[tuple[int, torch.Tensor]] = []
        self.now: list[tuple[int, int, int]] = []
        """(slot, first position, end) of the packed tokens."""
        self._forced = forced
        self.hooks = [r.register_forward_hook(self._hook(i)) for i, r in routers(model).items()]

    def _hook(self, layer: int) -> Any:
        def hook(_: Any, __: Any, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            self.found.append((layer, output[2]))
            if self._forced is None:
                return None
            weights = torch.cat([self._forced[slot].weights[layer][a:b] for slot, a, b in self.now])
            chosen = torch.cat([self._forced[slot].chosen[layer][a:b] for slot, a, b in self.now])
            return output[0], weights, chosen

        return hook


def serve(case: Case, transport: Transport | None = None, forced: dict[int, Answers] | None = None) -> Run:
    """Serve requests of unequal lengths, the last joining late; filled pages are scattered over all ranks."""
    transport = transport or LocalTransport(case.ranks)
    model, slots = family_model(case.family), range(len(LENGTHS))
    runner = ModelRunner(model, RuntimeConfig(page_tokens=case.page_tokens, latent=case.latent, blocks=64), transport)
    ledger = FakeLedger(owners=tuple(slot % case.ranks for slot in range(4)), page_tokens=case.page_tokens)
    ids = {slot: prompt_ids(slot, LENGTHS[slot] + DECODED) for slot in slots}
    gates = _Gates(model, forced)
    logits: dict[int, list[torch.Tensor]] = {slot: [] for slot in slots}
    chosen: dict[int, dict[int, list[torch.Tensor]]] = {slot: {i: [] for i in routers(model)} for slot in slots}
    for step in range(1000):
        segments = _next_segments(case, ledger, ids, step)
        if not segments:
            break
        ordered = [
            s for s in sorted(segments, key=lambda s: (s.owner, not s.decode)) if s.owner in transport.local_ranks
        ]
        gates.now, gates.found = [(s.slot, s.start, s.end) for s in ordered], []
        found, result = runner.logits(segments, ledger.view())
        for slot, part in zip([s.slot for s in ordered], _split(found, ordered), strict=True):
            logits[slot].append(part)
        for layer, choice in gates.found:
            for slot, part in zip([s.slot for s in ordered], _split(choice, ordered), strict=True):
                chosen[slot][layer].append(part)
        for filled in result.filled:
            ledger.block_tag[ledger.page_block[filled.slot, filled.page]] = filled.tags
            for layer in range(LAYERS):
                ledger.move(filled.slot, filled.page, layer, (filled.slot + 3 * filled.page + 2 * layer) % case.ranks)
        runner.apply_events(ledger.drain())
    for hook in gates.hooks:
        hook.remove()
    assert all(ledger.tokens[slot] == len(ids[slot]) for slot in slots)
    served = [slot for slot in slots if logits[slot]]
    return Run(
        {slot: torch.cat(logits[slot]) for slot in served},
        {slot: {i: torch.cat(x) for i, x in chosen[slot].items()} for slot in served},
        runner,
    )


def _next_segments(case: Case, ledger: FakeLedger, ids: dict[int, Any], step: int) -> list[Any]:
    segments = []
    for slot, tokens in ids.items():
        at, prompt = int(ledger.tokens[slot]), LENGTHS[slot]
        if slot == len(ids) - 1 and step < 4:
            continue
        if at < prompt:
            segments.append(ledger.segment(slot, tokens[at : min(at + case.chunk + slot, prompt)]))
        elif at < len(tokens):
            segments.append(ledger.segment(slot, tokens[at : at + 1], decode=True))
    return segments


def _split(packed: torch.Tensor, segments: list[Any]) -> tuple[torch.Tensor, ...]:
    return packed.split([len(s.token_ids) for s in segments])


def flips(answers: Answers, chosen: dict[int, torch.Tensor]) -> torch.Tensor:
    """Gate gaps (n,) at which a run chose another set of experts than the stock cache."""
    gaps = []
    for layer, ours in chosen.items():
        differ = (ours.sort(-1).values != answers.chosen[layer].sort(-1).values).any(-1)
        gaps.append(answers.gap[layer][differ])
    return torch.cat(gaps)


def assert_exact(case: Case, run: Run) -> int:
    """Logits within `TOLERANCE` of the stock cache's with equal expert choices. Where choices differ, the case is run
    again with the stock's forced on it: then every wish to differ must be a tie. Returns the number of flips."""
    answers = {slot: stock_answers(case.family, slot) for slot in run.logits}
    count = sum(len(flips(answers[slot], run.chosen[slot])) for slot in run.logits)
    if count:
        run = serve(case, forced={slot: stock_answers(case.family, slot) for slot in range(len(LENGTHS))})
        gaps = torch.cat([flips(answers[slot], run.chosen[slot]) for slot in run.logits])
        assert (gaps < TIE).all(), f"{case}: experts differ at gate gaps of up to {gaps.max():.1e}"
    for slot, logits in run.logits.items():
        difference = (logits - answers[slot].logits).abs().max()
        assert difference <= TOLERANCE, f"{case}: slot {slot} is off by {difference:.1e}"
    return count
