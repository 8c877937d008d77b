"""Serving prompts from a file, on one rank or many: what `python -m pikv_runtime serve` does."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.requests import Request, RequestList, chain_hashes
from pikv_runtime.transport import LocalTransport, TorchDistTransport, Transport


def read_prompts(path: Path, encode: Any, page_tokens: int) -> RequestList:
    """Requests from a JSON-lines file: `{"prompt": text, "output_tokens": 32, "arrival_s": 0.0, "class": 0}`.

    Raises:
        ValueError: names the line and what is wrong with it.
    """
    requests: list[Request] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row["prompt"], str):
                raise TypeError(f"prompt={row['prompt']!r} is no string")
            ids = np.asarray(encode(row["prompt"]), np.int32)
            requests.append(_request(len(requests), row, ids, page_tokens))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error!s}; wanted an object with a string 'prompt'") from error
    if not requests:
        raise ValueError(f"{path}: no prompts")
    requests.sort(key=lambda r: r.arrival_s)
    return RequestList(path.stem, requests[-1].arrival_s, tuple(requests))


def _request(number: int, row: dict[str, Any], ids: np.ndarray, page_tokens: int) -> Request:
    output = int(row.get("output_tokens", 32))
    hashes = np.zeros((len(ids) + output) // page_tokens, np.int64)  # zero: what is not known yet is not shared
    prompt = chain_hashes(ids, page_tokens)
    hashes[: len(prompt)] = prompt
    return Request(
        number, float(row.get("arrival_s", 0.0)), len(ids), output, hashes, int(row.get("class", 0)), prompt_ids=ids
    )


def join_ranks(ranks: int, device: str = "cpu") -> tuple[Transport, str]:
    """The transport and the device of this process: torch.distributed under torchrun, else virtual ranks."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return LocalTransport(ranks), device
    import torch.distributed as dist

    if device == "cuda":  # a device for each process of the machine
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if not dist.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=120))
    return TorchDistTransport(device), device


def serve(
    prompts: Path,
    *,
    model: str,
    policy: str | None,
    ranks: int,
    clock: Literal["model", "wall"],
    config: RuntimeConfig,
    device: str = "cpu",
) -> dict[str, Any]:
    """Serve all prompts of a file; returns texts, latencies and costs as one JSON object."""
    from pikv_runtime.engine import Engine
    from pikv_runtime.models import load_model

    loaded, tokenizer = load_model(model)
    workload = read_prompts(prompts, tokenizer.encode, config.page_tokens)
    transport, device = join_ranks(ranks, device)
    engine = Engine(loaded.to(device), config, policy, clock=clock, transport=transport)
    served = sorted(engine.run(workload), key=lambda done: done.request.request_id)
    costs = json.loads(engine.costs().to_json())
    return {
        "rank": transport.rank,
        "requests": [
            {
                "id": s.request.request_id,
                "text": tokenizer.decode(s.output_ids.tolist()),
                "ttft_s": s.ttft_s,
                "tpot_s": s.tpot_s,
                "hit_tokens": s.hit_tokens,
                "preempted": s.preempted,
            }
            for s in served
        ],
        "refused": sorted(r.request_id for r in engine.refused()),
        "costs": costs,
    }


def print_served(result: dict[str, Any]) -> None:
    """A short account for people."""
    for request in result["requests"]:
        text = request["text"].replace("\n", "\\n")
        print(f"{request['id']:>4}  ttft {request['ttft_s']:.3f} s  tpot {request['tpot_s'] * 1e3:.1f} ms  {text[:80]}")
    if result["refused"]:
        print(f"refused, as they cannot fit under the cap: {', '.join(map(str, result['refused']))}")
