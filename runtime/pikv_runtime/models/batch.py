"""The engine under `attach`: the ledger follows a batch whose forward passes somebody else runs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pikv_runtime import ledger as L
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.engine import Engine
from pikv_runtime.ledger.drive import put_into_force
from pikv_runtime.ledger.pressure import make_room
from pikv_runtime.ledger.references import open_block
from pikv_runtime.ledger.state import NATIVE
from pikv_runtime.models.segments import CacheView, ForwardResult, Segment
from pikv_runtime.models.step import Step
from pikv_runtime.objective import Reference
from pikv_runtime.policy.base import PolicyLike
from pikv_runtime.requests import Request, RequestList

I8 = NDArray[np.int64]


class BatchEngine(Engine):
    """Serves one batch in step: every forward pass computes the same rows, and none can wait.

    `begin` is the engine's schedule, `end` its telemetry, postprocess and control; the forward pass between them is the
    caller's. What a scheduler would answer to a full cache, waiting or preemption, is an error here.
    """

    def __init__(self, model: Any, config: RuntimeConfig, policy: PolicyLike = None) -> None:
        # Nobody asks for this batch's fidelity: exact shadows would cost memory for nothing.
        super().__init__(model, replace(config, audit_share=0.0), policy)
        self._counts = np.zeros(0, np.int64)
        self._most_tokens, self._limit = 0, ""

    @property
    def rows(self) -> int:
        """Rows of the batch being served; 0: none yet."""
        return len(self._counts)

    def begin(self, counts: I8, real: Tensor | None = None) -> Step:
        """Plan a forward pass that computes `counts` (rows,) more tokens; the first call opens the batch.

        Args:
            counts: New tokens of every row, padding apart.
            real: Indices of the packed tokens among those that the model computes; None: all.

        Raises:
            ValueError: The cache cannot hold them.
        """
        if self.rows == 0:
            self._open(counts)
        self._started, s = time.perf_counter(), self.ledger
        self._counts = counts
        put_into_force(s, 0)
        if s.running_count[0]:
            self._make_room(counts)
        self._schedule()
        if (s.slot_request[0, : len(counts)] != np.arange(len(counts))).any() or (s.slot_plan[0] != counts).any():
            raise ValueError(
                f"cap_bytes={self.config.cap_bytes}: no room for {int(counts.sum())} more tokens of {len(counts)} "
                "requests, and a batch cannot wait; pikv_runtime.generate can"
            )
        return self.runner.begin(self._segments(), CacheView.of(s), real)

    def end(self, step: Step) -> ForwardResult:
        """Commit the pass that `begin` planned; decide where a control interval ends."""
        result = self.runner.finish(step, torch.zeros(self.rows, dtype=torch.int32))
        self._signal(result)
        self._postprocess(result, self._started)
        s = self.ledger
        if s.clock_s[0] >= s.interval_end_s[0]:
            while s.interval_end_s[0] <= s.clock_s[0]:
                s.interval_end_s[0] += s.interval_s[0]
            self.measure()
            self.decide()
        self._apply_events()
        return result

    def _open(self, counts: I8) -> None:
        """Load one request for every row, as long as the cache can hold it: nobody says when it will end."""
        from pikv_runtime.models.runner import geometry_of_model

        rows, size = len(counts), self.config.page_tokens
        pages, limit = self.config.blocks // rows, f"blocks={self.config.blocks}"
        if self.config.cap_bytes is not None:
            geometry = geometry_of_model(self.model, self.config.latent)
            block_bytes = geometry.layers * geometry.page_bytes("native", size)
            if self.config.cap_bytes // block_bytes < pages:
                pages, limit = self.config.cap_bytes // block_bytes, f"cap_bytes={self.config.cap_bytes}"
        self._most_tokens, self._limit = max(0, pages * size - 2), limit
        self._check_length(counts)
        self.config = replace(self.config, slots=rows, max_batch_tokens=rows * pages * size)
        requests = tuple(
            Request(row, 0.0, n, pages * size - n, np.zeros(pages, np.int64), prompt_ids=np.zeros(n, np.int32))
            for row, n in enumerate(counts.tolist())
        )
        nothing = Reference(1.0, 1.0, 0.0, np.zeros(rows), 0.0, 0.0, 1.0)  # U is not run: nobody asks for J
        self.load(RequestList("batch", 0.0, requests), nothing)
        self.measure()
        self.decide()

    def _check_length(self, tokens: I8) -> None:
        if tokens.max() > self._most_tokens:
            raise ValueError(
                f"{int(tokens.max())} tokens in a row, {self._limit} has room for {self._most_tokens} in each of "
                f"{len(tokens)} rows"
            )

    def _make_room(self, counts: I8) -> None:
        """Open pages for prompt tokens that follow what a row holds already; decoding rows get theirs from the plan."""
        s = self.ledger
        self._check_length(s.slot_tokens[0, : len(counts)] + counts)
        need = s.layers * s.codec_bytes[NATIVE]
        for row, count in enumerate(counts.tolist()):
            end = int(s.slot_tokens[0, row]) + count
            if count == 1:
                continue
            s.slot_target[0, row] = end
            for _ in range(int(s.slot_pages[0, row]), -(-end // s.page_tokens)):
                if not make_room(s, 0, s.slot_owner[0, row], need):
                    break  # the plan will not agree, and say so
                open_block(s, 0, row, s.slot_owner[0, row])

    def _segments(self) -> list[Segment]:
        s, segments = self.ledger, []
        for row, count in enumerate(self._counts.tolist()):
            decode = bool(s.slot_tokens[0, row] >= s.slot_target[0, row])
            ids = np.zeros(count, np.int32)  # the model has them already
            observe = decode and L.due(s, 0, row) >= 0
            segments.append(Segment(row, 0, int(s.slot_tokens[0, row]), ids, decode, observe))
        return segments

    def _append(self, q: int, token: int) -> None:
        """Whoever generates keeps the tokens."""
