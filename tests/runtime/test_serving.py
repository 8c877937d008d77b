"""`python -m pikv_runtime`: serving a file of prompts, and verifying bundles, as a server would be told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pikv_runtime.__main__ import main
from pikv_runtime.policy import PolicyNetwork, save_bundle
from pikv_runtime.requests import chain_hashes
from pikv_runtime.serving import read_prompts

SHARED = "The code of the red door is 4417; the code of the blue door is 9031. The code of the "
ROWS = (
    {"prompt": SHARED + "red door is", "output_tokens": 6, "arrival_s": 1.0},
    {"prompt": SHARED + "blue door is", "output_tokens": 8, "class": 1},
    {"prompt": "1, 2, 3, 4, ", "output_tokens": 5, "arrival_s": 2.0},
)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    return path


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_prompts_become_requests_ordered_by_arrival(prompts: Path) -> None:
    workload = read_prompts(prompts, encode, 16)
    assert [r.request_id for r in workload.requests] == [1, 0, 2]
    first = workload.requests[0]
    assert first.prompt_ids.tolist() == encode(ROWS[1]["prompt"]) and first.output_tokens == 8 and first.class_id == 1
    full = first.prompt_tokens // 16
    np.testing.assert_array_equal(first.hash_ids[:full], chain_hashes(first.prompt_ids, 16))
    assert not first.hash_ids[full:].any()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 2: "),
        ('{"text": "a"}', "line 2: 'prompt'; wanted an object with a string 'prompt'"),
        ('["a"]', "line 2: "),
        ('{"prompt": 7}', "line 2: prompt=7 is no string"),
        ('{"prompt": ""}', "line 2: request 1: prompt_tokens=0"),
        ('{"prompt": "a", "output_tokens": 0}', "line 2: request 1: prompt_tokens=1 and output_tokens=0"),
        ('{"prompt": "a", "output_tokens": "many"}', "line 2: invalid literal"),
        ('{"prompt": "a", "class": 9}', "line 2: request 1: class_id=9"),
    ],
)
def test_a_bad_line_is_named(prompts: Path, capsys, line: str, message: str) -> None:
    prompts.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    assert main(["serve", str(prompts)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {prompts}, ") and message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "nowhere.jsonl"], "nowhere.jsonl"),
        (["serve", "{prompts}", "--policy", "lazzy"], "did you mean 'lazy'"),
        (["serve", "{prompts}", "--read", "sparse", "--router", "all"], "read='sparse' with router='all'"),
        (["serve", "{prompts}", "--ranks", "0"], "ranks=0"),
        (["serve", "{prompts}", "--cap-mb", "-1"], "cap_bytes=-1000000"),
        (["serve", "{prompts}", "--model", "nowhere"], "no model at 'nowhere'"),
        (["verify", "nowhere"], "no bundle folder"),
    ],
)
def test_errors_are_one_line(prompts: Path, capsys, arguments: list[str], message: str) -> None:
    assert main([a.format(prompts=prompts) for a in arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def serve(prompts: Path, tmp_path: Path, *extra: str) -> dict:
    result = tmp_path / "served.json"
    assert main(["serve", str(prompts), "--json", str(result), *extra]) == 0
    return json.loads(result.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_serving_a_file(prompts: Path, tmp_path: Path, capsys, ranks: int) -> None:
    result = serve(prompts, tmp_path, "--ranks", str(ranks))
    assert [r["id"] for r in result["requests"]] == [0, 1, 2] and result["refused"] == []
    assert [len(encode(r["text"])) for r in result["requests"]] == [6, 8, 5]
    assert all(r["ttft_s"] > 0 and r["tpot_s"] > 0 and r["preempted"] == 0 for r in result["requests"])
    assert result["requests"][0]["hit_tokens"] == len(SHARED) // 16 * 16  # it came second
    assert result["costs"]["counters"]["hit_tokens"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(ROWS) and all("ttft" in line and "tpot" in line for line in printed)
    texts = [r["text"] for r in serve(prompts, tmp_path, "--ranks", str(ranks), "--clock", "model")["requests"]]
    assert texts == [r["text"] for r in result["requests"]]


def test_a_lossy_policy_and_a_cap_that_refuses(prompts: Path, tmp_path: Path, capsys) -> None:
    options = ("--read", "sparse", "--codec", "bf16", "--policy", "lazy/h2o", "--clock", "model", "--cap-mb", "0.2")
    result = serve(prompts, tmp_path, *options)
    assert result["refused"] == [0, 1] and [r["id"] for r in result["requests"]] == [2]
    assert "refused, as they cannot fit under the cap: 0, 1" in capsys.readouterr().out


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-0.1"
    provenance = {"commit": "0" * 40, "command": "test", "seeds": [0], "families": ["facts"]}
    named = {"name": "tiny", "version": "0.1", "interval_s": 2.0, "objective_version": "1", "card": "# tiny\n"}
    save_bundle(folder, PolicyNetwork.random((8, 8)), **named, provenance=provenance, evaluation={"J": 1.0})
    return folder


def test_verify_tells_a_good_bundle_from_a_damaged_one(bundle: Path, capsys) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert capsys.readouterr().out.startswith("tiny-0.1: verified (contract ")
    (bundle / "README.md").write_text("# Best policy ever\n")
    assert main(["verify", str(bundle)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "README.md" in error and error.count("\n") == 1


def test_a_bundle_serves(prompts: Path, tmp_path: Path, bundle: Path) -> None:
    assert len(serve(prompts, tmp_path, "--policy", str(bundle), "--clock", "model")["requests"]) == len(ROWS)


@pytest.mark.slow
@pytest.mark.distributed
def test_torchrun_starts_real_ranks(prompts: Path, tmp_path: Path) -> None:
    result = tmp_path / "served.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "pikv_runtime", "serve", str(prompts), "--clock", "model", "--json", str(result)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(ROWS)  # rank 0 alone speaks
    texts = [r["text"] for r in json.loads(result.read_text())["requests"]]
    assert texts == [r["text"] for r in serve(prompts, tmp_path, "--ranks", "2", "--clock", "model")["requests"]]


def test_the_module_runs_as_a_command(bundle: Path) -> None:
    command = [sys.executable, "-m", "pikv_runtime", "verify", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and "golden pairs reproduced" in done.stdout
