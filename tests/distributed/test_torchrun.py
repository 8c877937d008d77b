"""`torchrun -m pikv_runtime serve`: real processes, torchrun's own rendezvous, the tokens of one rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pikv_runtime.config import RuntimeConfig
from pikv_runtime.joining import joined_ranks
from pikv_runtime.serving import ServeOptions, serve

PROMPTS = (
    "The code of the red door is 4417; the code of the blue door is 9031. The code of the red door is",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):\n    return",
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday, Wednesday,",
)


def prompts_file(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "output_tokens": 12}) + "\n" for text in PROMPTS))
    return path


def texts(result) -> list[str]:
    return [request["text"] for request in result["requests"]]


def torchrun(folder: Path, processes: int, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "pikv_runtime", "serve", str(prompts_file(folder)), "--json", str(folder / "out.json"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env=environment)


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_torchrun_gives_the_tokens_of_one_rank(tmp_path, processes) -> None:
    done = torchrun(tmp_path, processes, "--shard-map", "page_stripe", "--clock", "model")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    torch.set_num_threads(1)
    config = RuntimeConfig(shard_map="page_stripe")
    alone = serve(ServeOptions(prompts_file(tmp_path), clock="model", config=config))
    assert texts(found) == texts(alone)
    assert found["ranks"] == processes and found["wire"]["sent_bytes"]["decode_query"] > 0
    assert done.stdout.count("ttft") == len(PROMPTS)  # rank 0 alone speaks


def test_ranks_that_contradict_torchrun_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="ranks=4 in 2 processes"), joined_ranks(4):
        pass
