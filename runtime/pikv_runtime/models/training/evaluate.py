"""Measure the embedded model: `python -m pikv_runtime.models.training.evaluate --model DIR --out eval.json`.

Recall counts an answer as right when every one of its tokens is the most likely one. Each probe is also
given without its far part (the context cut to half the distance), which shows what the near context alone
would answer.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .architecture import MAX_POSITIONS
from .probes import PROBES
from .samples import TaskSample
from .text import Kind, corpus_digest, stream

DISTANCES = (64, 128, 256, 512, 1024, 1536, 2048, 3072)


def load(directory: Path) -> Any:
    """Load a model in single precision for evaluation.

    Args:
        directory: A Hugging Face model directory.

    Returns:
        The model.
    """
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def recall(model: Any, kind: str, distance: int, probes: int, *, seed: int = 1, far: bool = True) -> float:
    """Measure the recall of a fact at a distance.

    Args:
        model: The model.
        kind: A name of `PROBES`.
        distance: The number of tokens between the fact and its answer.
        probes: The number of probes.
        seed: The seed of the probes.
        far: False cuts the context to half the distance, so that the fact is out of sight.

    Returns:
        The share of probes all of whose answer tokens are the most likely ones.
    """
    rng = np.random.default_rng((seed, distance))
    samples = [PROBES[kind](rng, distance) for _ in range(probes)]
    rows = max(1, 4096 // (distance + 128))
    right = 0
    for begin in range(0, probes, rows):
        right += _right(model, samples[begin : begin + rows], None if far else distance // 2)
    return right / probes


@torch.no_grad()
def _right(model: Any, samples: list[TaskSample], window: int | None) -> int:
    """Count the samples of one batch whose last answer is right."""
    ids = torch.from_numpy(np.stack([sample.ids for sample in samples]))
    width = samples[0].answers[-1].end - samples[0].answers[-1].start
    if window is not None:
        ids = ids[:, -window:]
    guess = model(input_ids=ids[:, :-1], use_cache=False).logits[:, -width:].argmax(-1)
    return int((guess == ids[:, -width:]).all(-1).sum())


@torch.no_grad()
def bits_per_byte(model: Any, kind: Kind, windows: int, length: int = 1024) -> float:
    """Measure the compression of held-out text.

    Args:
        model: The model.
        kind: "prose" or "code".
        windows: The number of windows, evenly spread over the held-out stream.
        length: The number of bytes of a window.

    Returns:
        The mean bits per byte over all but the first byte of every window.
    """
    text = stream(kind, "heldout")
    starts = np.linspace(0, len(text) - length, windows).astype(int)
    total = 0.0
    for start in starts:
        ids = torch.from_numpy(text[start : start + length].astype(np.int64))[None]
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0]
        total += float(F.cross_entropy(logits, ids[0, 1:]))
    return total / len(starts) / math.log(2)


@torch.no_grad()
def expert_shares(model: Any, length: int = 1024) -> list[list[float]]:
    """Measure how the routers spread held-out prose and code over the experts.

    Args:
        model: The model.
        length: The number of bytes of each of the two texts.

    Returns:
        For each layer the share of the assignments that each expert gets.
    """
    texts = [stream(kind, "heldout")[:length].astype(np.int64) for kind in ("prose", "code")]
    output = model(input_ids=torch.from_numpy(np.stack(texts)), output_router_logits=True, use_cache=False)
    experts, active = model.config.num_local_experts, model.config.num_experts_per_tok
    shares = []
    for logits in output.router_logits:
        counts = torch.bincount(logits.topk(active, -1).indices.flatten(), minlength=experts)
        shares.append([round(float(count), 4) for count in counts / counts.sum()])
    return shares


def evaluate(model: Any, probes: int, windows: int) -> dict[str, Any]:
    """Measure everything that the model card reports.

    Args:
        model: The model.
        probes: The number of probes of each kind and distance.
        windows: The number of held-out windows of each kind of text.

    Returns:
        The measurements, ready for JSON.
    """
    near = {kind: {str(d): recall(model, kind, d, probes, far=False) for d in (256, 512)} for kind in PROBES}
    kinds: tuple[Kind, ...] = ("prose", "code")
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "probes": probes,
        "recall": {kind: {str(d): recall(model, kind, d, probes) for d in DISTANCES} for kind in PROBES},
        "recall_without_far_context": near,
        "bits_per_byte": {kind: round(bits_per_byte(model, kind, windows), 4) for kind in kinds},
        "window": 1024,
        "windows": windows,
        "expert_shares": expert_shares(model),
        "max_positions": MAX_POSITIONS,
        "corpus": corpus_digest(),
    }


def main() -> None:
    """Parse the command line, evaluate, and write the JSON file."""
    parser = argparse.ArgumentParser(description="Measure the embedded model.")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face model directory")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--probes", type=int, default=100)
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = evaluate(load(options.model), options.probes, options.windows)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
