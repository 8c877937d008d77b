"""Train the embedded model: `python -m pikv_runtime.models.training.train --out DIR --minutes N`.

The curriculum starts with short copies and facts and lengthens the context when the recall of facts has
formed, or when a stage has used its share of the time; the last stage goes over the middle lengths again. The
loss of a synthetic context lies almost entirely on its answers; that of prose and code lies on every token.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .architecture import embedded_config, save_pretrained
from .curriculum import REVISITED, STAGES, draw_batch

TEXT = ("prose", "code")
KEYED = ("facts", "pairs")
RECALL_LEVEL = 0.93
BALANCE_WEIGHT = 0.08


@dataclass
class Progress:
    """What a run has reached; it is part of every checkpoint."""

    step: int = 0
    stage: int = 0
    seconds: float = 0.0
    recall: float = 0.0
    text_bits: float = 8.0


def losses(model: Any, ids: torch.Tensor, mask: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    """Compute the parts of the loss of one batch.

    Args:
        model: A causal language model with a router.
        ids: The token ids.
        mask: Which tokens are answers.
        names: The task of each row.

    Returns:
        The mean loss of the answers, of the text, and of the other tokens, the router's balance loss, and the
        accuracy on the answers of the keyed tasks (NaN without any).
    """
    output = model(input_ids=ids, output_router_logits=True, use_cache=False)
    logits, targets, answer = output.logits[:, :-1], ids[:, 1:], mask[:, 1:]
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    text = torch.tensor([name in TEXT for name in names])[:, None].expand_as(answer)
    asked = answer & torch.tensor([name in KEYED for name in names])[:, None]
    right = (logits.detach().argmax(-1) == targets)[asked].float().mean()
    return {
        "answer": _mean(each, answer),
        "text": _mean(each, text),
        "other": _mean(each, ~answer & ~text),
        "balance": balance_loss(output.router_logits, model.config.num_experts_per_tok),
        "right": right,
    }


def balance_loss(router_logits: tuple[torch.Tensor, ...], active: int) -> torch.Tensor:
    """Compute the load-balancing loss layer by layer, so that no layer leaves experts idle.

    Args:
        router_logits: For each layer the logits of shape (tokens, experts).
        active: The number of experts of a token.

    Returns:
        The mean over the layers; it equals `active` when every layer is even.
    """
    total = torch.zeros(())
    for logits in router_logits:
        experts = logits.shape[-1]
        chosen = F.one_hot(logits.topk(active, -1).indices, experts).sum(-2).float().mean(0)
        total = total + experts * (chosen * logits.softmax(-1).mean(0)).sum()
    return total / len(router_logits)


def _mean(each: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Average the chosen entries; zero without any."""
    return (each * chosen).sum() / chosen.sum().clamp(min=1)


def learning_rate(step: int, share: float, peak: float) -> float:
    """Return the learning rate: a warm-up by steps, then a cosine over the time of the run.

    Args:
        step: The number of steps done.
        share: The share of the time that is used up.
        peak: The highest learning rate.

    Returns:
        The learning rate; it ends at three per cent of the peak.
    """
    cosine = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return peak * min(1.0, (step + 1) / 100) * cosine


class Trainer:
    """Trains, reports and checkpoints one run."""

    def __init__(self, out: Path, minutes: float, seed: int, peak: float) -> None:
        from transformers import MixtralForCausalLM

        self.out, self.budget, self.peak = out, minutes * 60, peak
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.model: Any = MixtralForCausalLM._from_config(embedded_config(), experts_implementation="eager")
        self.optimizer = _optimizer(self.model, peak)
        self.progress = Progress()

    def resume(self) -> None:
        """Continue from the checkpoint of the output directory, if there is one."""
        path = self.out / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)  # tensors and numbers, nothing that runs
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.rng.bit_generator.state = state["rng"]
            self.progress = Progress(**state["progress"])

    def save(self) -> None:
        """Write the checkpoint and the model files, each atomically."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
            "progress": vars(self.progress),
        }
        torch.save(state, self.out / "checkpoint.tmp")
        os.replace(self.out / "checkpoint.tmp", self.out / "checkpoint.pt")
        save_pretrained(self.model, self.out / "model")

    def run(self, save_every: float = 120.0) -> None:
        """Train until the time is used up.

        Args:
            save_every: The seconds between two checkpoints.
        """
        saved = self.progress.seconds
        while self.progress.seconds < self.budget:
            begin = time.perf_counter()
            parts = self.step()
            self.progress.seconds += time.perf_counter() - begin
            self._observe(parts)
            if self.progress.seconds - saved > save_every:
                saved = self.progress.seconds
                self.save()
        self.save()

    def step(self) -> dict[str, float]:
        """Do one step of the optimizer.

        Returns:
            The parts of the loss.
        """
        share = self.progress.seconds / self.budget
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.step, share, self.peak)
        stage = STAGES[self.progress.stage]
        if stage is STAGES[-1]:
            stage = REVISITED[int(self.rng.integers(len(REVISITED)))]
        parts = losses(self.model, *draw_batch(self.rng, stage))
        loss = parts["answer"] + parts["text"] + 0.05 * parts["other"]
        total: Any = loss + BALANCE_WEIGHT * parts["balance"]
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: float(part.detach()) for name, part in parts.items()}

    def _observe(self, parts: dict[str, float]) -> None:
        """Follow the running averages, log now and then, and move on to the next stage when it is time."""
        now = self.progress
        now.step += 1
        if not math.isnan(parts["right"]):
            now.recall += 0.05 * (parts["right"] - now.recall)
        if parts["text"] > 0:
            now.text_bits += 0.05 * (parts["text"] / math.log(2) - now.text_bits)
        if now.step % 20 == 0:
            row = {**vars(now), "length": STAGES[now.stage].length, **parts}
            with (self.out / "log.jsonl").open("a") as file:
                file.write(json.dumps({name: round(value, 4) for name, value in row.items()}) + "\n")
        last = now.stage == len(STAGES) - 1
        if not last and (now.recall > RECALL_LEVEL or now.seconds / self.budget > STAGES[now.stage].until):
            now.stage, now.recall = now.stage + 1, 0.5 * now.recall


def _optimizer(model: Any, peak: float) -> torch.optim.AdamW:
    """Build AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.97))


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    parser.add_argument(
        "--minutes", type=float, required=True, help="minutes of training in total, resumed runs included"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="ignore a checkpoint in the directory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trainer = Trainer(options.out, options.minutes, options.seed, options.peak)
    if not options.fresh:
        trainer.resume()
    trainer.run()


if __name__ == "__main__":
    main()
