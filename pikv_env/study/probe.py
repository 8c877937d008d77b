"""An engine that is watched: every request is teacher-forced and audited, every distribution of next tokens kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_env.study.contents import Probe
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.engine import Engine
from pikv_runtime.ledger.observe import read_masks
from pikv_runtime.models.runner import ModelRunner
from pikv_runtime.models.segments import ForwardResult
from pikv_runtime.models.step import Step
from pikv_runtime.policy.loading import as_policy
from pikv_runtime.requests import RequestList

F4 = NDArray[np.float32]


class ProbeRunner(ModelRunner):
    """Keeps the logits and the experts of the last token of every segment of the last pass, by slot."""

    def _run(self, step: Step, every_token: bool = False) -> Tensor:
        logits = super()._run(step, every_token)
        slots = [segment.slot for batch in step.local for segment in batch.segments]
        chosen = self.gates.choices()[:, self._last_tokens(step)].cpu().numpy() if slots else np.zeros((0, 0), int)
        self.last_logits = dict(zip(slots, torch.log_softmax(logits.float(), -1).cpu().numpy(), strict=True))
        self.last_experts = {slot: chosen[:, i] for i, slot in enumerate(slots)}
        return logits


class ProbeEngine(Engine):
    """Serves probes in one process on the model clock and keeps what the study asks for.

    Attributes:
        log_probs: by request, one (V,) row per output token.
        wished, hit: (L, E) attention mass of wished pages by tag, and of those the resident ones.
        wishes, misses: wished pages at observed steps, and of those the evicted ones.
        routed: (L, E) observed decode tokens whose gate chose the expert.
        predicted: observed (token, layer) pairs, and those whose expert was predicted before attention.
        own_hit: hit of every observed (token, layer): its own wished mass that was resident.
        gaps: (request, layer, page) -> least seconds from its eviction to a wish for it.
        decode_s: wall seconds of every forward pass that only decoded.
    """

    def load(self, workload: Any, reference: Any = None, pages: int = 0) -> None:
        """As `Engine.load`; starts the record anew."""
        super().load(workload, reference, pages)
        self.runner: ProbeRunner = ProbeRunner(
            self.model, self.config, self.transport, blocks=self.ledger.block_hash.shape[1]
        )
        s = self.ledger
        self.log_probs: list[list[F4]] = [[] for _ in self.requests]
        self.wished, self.hit = np.zeros((s.layers, s.experts)), np.zeros((s.layers, s.experts))
        self.routed = np.zeros((s.layers, s.experts))
        self.wishes = self.misses = 0
        self.predicted = np.zeros(2)
        self.own_hit: list[float] = []
        self.gaps: dict[tuple[int, int, int], float] = {}
        self.decode_s: list[float] = []

    def _forward(self) -> ForwardResult:
        segments, started = self._segments(), time.perf_counter()
        result = super()._forward()
        if segments and all(segment.decode for segment in segments):
            self.decode_s.append(time.perf_counter() - started)
        return result

    def _append(self, q: int, token: int) -> None:
        slot = int(np.flatnonzero(self.ledger.slot_request[0] == q)[0])
        self.log_probs[q].append(self.runner.last_logits[slot])
        super()._append(q, token)

    def _signal(self, result: ForwardResult) -> None:
        for seen in result.observations:
            for layer in range(self.ledger.layers):
                self._note(seen.slot, layer, seen.mass[layer], seen.score[layer], seen.gate[layer])
        super()._signal(result)

    def _note(self, r: int, layer: int, mass: F4, score: F4, gate: F4) -> None:
        """Count one observed token in one layer: whom it was routed to, what it wished for and what was gone."""
        s, q = self.ledger, int(self.ledger.slot_request[0, r])
        expert = int(self.runner.last_experts[r][layer])
        self.routed[layer, expert] += 1
        self.predicted += (1, float(gate.argmax() == expert))
        wide = np.zeros(s.page_block.shape[2], np.float32)
        wide[: len(score)] = score
        _, wished = read_masks(s, 0, r, layer, wide)
        pages = np.flatnonzero(wished)
        if len(pages) == 0:
            return
        live, tags = s.page_live[0, r, layer, pages] == 1, np.maximum(s.page_tag[0, r, layer, pages], 0)
        np.add.at(self.wished[layer], tags, mass[pages])
        np.add.at(self.hit[layer], tags[live], mass[pages[live]])
        total = float(mass[pages].sum())
        self.own_hit.append(float(mass[pages[live]].sum()) / total if total > 0 else 1.0)
        self.wishes += len(pages)
        self.misses += int((~live).sum())
        for page in pages[~live].tolist():
            gap = float(s.clock_s[0] - s.page_gone_s[0, r, layer, page])
            self.gaps[q, layer, page] = min(gap, self.gaps.get((q, layer, page), np.inf))


def serve_probes(model: Any, config: RuntimeConfig, policy: Any, probes: Sequence[Probe]) -> ProbeEngine:
    """Serve all probes to their ends under `policy`; returns the engine with what it kept."""
    engine = ProbeEngine(model, config, as_policy(policy, config.ranker, config.window_pages))
    for _ in engine.run(RequestList("study", 0.0, tuple(p.request for p in probes))):
        pass
    return engine
