"""The tokens of every request, prompt and output, and what of them an iteration computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pikv_runtime import ledger as L
from pikv_runtime.models.segments import Segment
from pikv_runtime.requests import Request


class Transcripts:
    """What was asked and what has been said, by number of the request.

    `requests`: as loaded into the ledger. `outputs`: tokens generated so far.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.outputs: list[list[int]] = [[] for _ in requests]

    def append(self, q: int, token: int, audited: bool) -> None:
        """Request `q` goes on with `token`; an audited one follows its exact continuation where that is known."""
        request, output = self.requests[q], self.outputs[q]
        if audited and request.exact_ids is not None and len(output) < len(request.exact_ids):
            token = int(request.exact_ids[len(output)])
        output.append(token)

    def tokens(self, q: int, start: int, count: int) -> NDArray[np.int32]:
        """Tokens [start, start + count) of request `q`: prompt, then what it has generated."""
        request = self.requests[q]
        if request.prompt_ids is None:
            return np.zeros(count, np.int32)
        prompt = request.prompt_ids[start : start + count]
        begin = max(0, start - request.prompt_tokens)
        generated = self.outputs[q][begin : begin + count - len(prompt)]
        return np.concatenate([prompt, np.array(generated, np.int32)]).astype(np.int32)

    def segments(self, s: L.Ledger) -> list[Segment]:
        """What lane 0's planned iteration computes, one segment for each slot that has a part in it."""
        segments = []
        for r in np.flatnonzero(s.slot_plan[0] > 0).tolist():
            q, start, count = int(s.slot_request[0, r]), int(s.slot_tokens[0, r]), int(s.slot_plan[0, r])
            decode = bool(s.slot_tokens[0, r] >= s.slot_target[0, r])
            segments.append(
                Segment(
                    slot=r,
                    owner=int(s.slot_owner[0, r]),
                    start=start,
                    token_ids=self.tokens(q, start, count),
                    decode=decode,
                    observe=decode and L.due(s, 0, r) >= 0,
                    audited=bool(s.req_audited[0, q]),
                )
            )
        return segments
