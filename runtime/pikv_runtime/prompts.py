"""Requests from a file of prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

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
