"""Going on where an engine that died had stopped: its unfinished requests join the workload, with their tokens."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pikv_runtime.journal import Journal
from pikv_runtime.journal_format import Recovered, recover
from pikv_runtime.ledger.state import Ledger
from pikv_runtime.requests import RequestList, Workload
from pikv_runtime.transcripts import Transcripts
from pikv_runtime.transport import Transport


def join(workload: Workload, recovered: Recovered) -> Workload:
    """`workload` without what is over, with what is unfinished; that arrives as if the clock had stood still."""
    if not recovered.requests:
        return workload
    given = {r.request_id: r for r in workload.requests}
    left = [
        replace(given.get(r.request_id, r), arrival_s=max(0.0, r.arrival_s - recovered.clock_s))
        for r in recovered.unfinished
    ]
    fresh = [r for r in workload.requests if r.request_id not in recovered.requests]
    requests = sorted(left + fresh, key=lambda r: r.arrival_s)
    seed = int(getattr(workload, "seed", 0))
    return RequestList(workload.name, workload.horizon_s, tuple(requests), workload.classes, seed=seed)


def go_on(s: Ledger, transcripts: Transcripts, recovered: Recovered) -> None:
    """Give the requests of lane 0 the tokens that they had said. They are computed again as after a preemption."""
    for q, request in enumerate(transcripts.requests):
        said = recovered.said.get(request.request_id, [])
        if said:
            transcripts.outputs[q][:] = said
            s.req_generated[0, q] = len(said)
            s.req_lossy[0, q] = 1  # perhaps: their blocks beyond the prompt are not shared


def shared_recovery(transport: Transport, journal: Journal | None) -> Recovered:
    """What rank 0's journal says, on every rank: the file's bytes travel, and each rank checks and reads them."""
    if len(transport.local_ranks) == transport.world:
        return recover(journal.path.read_bytes()) if journal is not None else Recovered()
    mine = np.frombuffer(journal.path.read_bytes() if journal is not None else b"", np.uint8)
    size = int(transport.broadcast(torch.tensor([len(mine)], dtype=torch.int64))[0])
    if size == 0:
        return Recovered()
    data = torch.from_numpy(mine.copy() if journal is not None else np.zeros(size, np.uint8))
    return recover(transport.broadcast(data).numpy().tobytes())


def model_name(model: Any) -> str:
    """A short name by which a model is known again: its type, and a hash of a sample of every weight."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sample = tensor.detach().flatten()[:: max(1, tensor.numel() // 64)][:64]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(sample.float().cpu().numpy().astype(np.float32).tobytes())
    return f"{model.config.model_type}-{digest.hexdigest()[:16]}"
