"""Requests from a file of prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pikv_runtime.requests import Request, RequestList, chain_hashes


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
            output, arrival_s = int(row.get("output_tokens", 32)), float(row.get("arrival_s", 0.0))
            class_id = int(row.get("class", 0))
            requests.append(prompt_request(len(requests), ids, output, page_tokens, arrival_s, class_id))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error!s}; wanted an object with a string 'prompt'") from error
    if not requests:
        raise ValueError(f"{path}: no prompts")
    requests.sort(key=lambda r: r.arrival_s)
    return RequestList(path.stem, requests[-1].arrival_s, tuple(requests))


def prompt_request(
    number: int,
    ids: NDArray[np.int32],
    output_tokens: int,
    page_tokens: int,
    arrival_s: float = 0.0,
    class_id: int = 0,
) -> Request:
    """The request of a prompt (n,): its full blocks are shared with whoever begins alike, what follows with nobody."""
    hashes = np.zeros((len(ids) + output_tokens) // page_tokens, np.int64)  # zero: not known yet, hence not shared
    prompt = chain_hashes(ids, page_tokens)
    hashes[: len(prompt)] = prompt
    return Request(number, arrival_s, len(ids), output_tokens, hashes, class_id, prompt_ids=ids)
