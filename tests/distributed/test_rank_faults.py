"""A rank that dies, hangs or fails: the others end in time, with one error that names it; links listen on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from pikv_runtime.__main__ import BAD_INPUT, RANK_LOST, main
from pikv_runtime.joining import LINK_VARIABLES, bind_links
from pikv_runtime.journal_format import recover
from pikv_runtime.models import load_model

pytestmark = pytest.mark.distributed

WORLD, TIMEOUT_S = 3, 4.0
PROMPT = "The code of the red door is 4417; the code of the blue door is 9031. The code of the "


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    torch.set_num_threads(1)
    load_model("embedded")  # imports, before the fork


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"{n}. {PROMPT}", "output_tokens": 160} for n in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def rank_main(rank: int, port: int, arguments: list[str], folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    for name in LINK_VARIABLES:
        os.environ.pop(name, None)
    errors = os.open(folder / f"{rank}.err", os.O_CREAT | os.O_WRONLY)
    os.dup2(errors, 2)
    sys.stdout = sys.stderr = os.fdopen(errors, "w", buffering=1)  # pytest has put its own in their places
    os._exit(main(arguments))


class Ranks:
    """The command in `WORLD` processes, as torchrun would start them."""

    def __init__(self, folder: Path, *arguments: str, other: dict[int, list[str]] | None = None) -> None:
        self.folder, self.journal = folder, folder / "journal"
        command = ["serve", *arguments, "--timeout-s", str(TIMEOUT_S), "--journal", str(self.journal)]
        port = free_port()
        self.processes = [
            get_context("fork").Process(
                target=rank_main, args=(rank, port, [*command, *(other or {}).get(rank, [])], folder)
            )
            for rank in range(WORLD)
        ]
        for process in self.processes:
            process.start()

    def until_decoding(self) -> None:
        deadline = time.monotonic() + 60
        while self.said() < 12:
            assert time.monotonic() < deadline and all(p.is_alive() for p in self.processes), self.errors()
            time.sleep(0.01)

    def said(self) -> int:
        data = self.journal.read_bytes() if self.journal.exists() else b""
        return sum(map(len, recover(data).said.values()))

    def send(self, rank: int, number: int) -> None:
        os.kill(self.processes[rank].pid, number)

    def codes(self, ranks, within_s: float) -> list[int | None]:
        """Exit codes of `ranks`, None for those that still run after `within_s`."""
        deadline = time.monotonic() + within_s
        for rank in ranks:
            self.processes[rank].join(max(0.0, deadline - time.monotonic()))
        return [self.processes[rank].exitcode for rank in ranks]

    def errors(self) -> list[list[str]]:
        """Lines of every rank that say `error:`."""
        paths = (self.folder / f"{rank}.err" for rank in range(WORLD))
        return [[line for line in p.read_text().splitlines() if line.startswith("error: ")] for p in paths]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.mark.parametrize(
    "lost", [1, pytest.param(0, marks=pytest.mark.slow)], ids=["a rank", "the rank that hosts the store"]
)
def test_when_a_rank_is_killed_the_others_name_it(prompts: Path, tmp_path: Path, lost: int) -> None:
    with Ranks(tmp_path, str(prompts)) as ranks:
        ranks.until_decoding()
        ranks.send(lost, signal.SIGKILL)
        others = [rank for rank in range(WORLD) if rank != lost]
        assert ranks.codes(others, TIMEOUT_S + 1) == [RANK_LOST] * 2
        for rank in others:
            (error,) = ranks.errors()[rank]
            assert error.startswith(f"error: rank {lost} of {WORLD} ") and "was lost" in error
    found = recover(ranks.journal.read_bytes())
    assert len(found.unfinished) == 4 and sum(map(len, found.said.values())) >= 12


def test_when_a_rank_hangs_the_others_name_it(prompts: Path, tmp_path: Path) -> None:
    with Ranks(tmp_path, str(prompts)) as ranks:
        ranks.until_decoding()
        ranks.send(2, signal.SIGSTOP)
        assert ranks.codes([0, 1], TIMEOUT_S + 1) == [RANK_LOST] * 2
        for rank in (0, 1):
            (error,) = ranks.errors()[rank]
            assert error.startswith(f"error: rank 2 of {WORLD} was lost: it has not been heard of for")


def test_when_a_rank_fails_the_others_say_why(prompts: Path, tmp_path: Path) -> None:
    with Ranks(tmp_path, str(prompts), other={1: ["--policy", "lazzy"]}) as ranks:
        assert ranks.codes(range(WORLD), 20) == [RANK_LOST, BAD_INPUT, RANK_LOST]
        (own,) = ranks.errors()[1]
        assert own.startswith("error: unknown policy 'lazzy'")
        for rank in (0, 2):
            (error,) = ranks.errors()[rank]
            assert error.startswith(f"error: rank 1 of {WORLD} failed: UnknownNameError: unknown policy 'lazzy'")


def listeners(pid: int) -> set[str]:
    """Addresses that a process listens at, as the kernel tells them."""
    inodes = {
        os.readlink(f"/proc/{pid}/fd/{fd}")[8:-1]
        for fd in os.listdir(f"/proc/{pid}/fd")
        if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
    }
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                found.add(socket.inet_ntop(socket.AF_INET if table == "tcp" else socket.AF_INET6, words))
    return found


@pytest.mark.slow
def test_ranks_listen_on_loopback_and_drain_together(prompts: Path, tmp_path: Path) -> None:
    with Ranks(tmp_path, str(prompts), "--drain-s", "0", "--json", str(tmp_path / "result.json")) as ranks:
        ranks.until_decoding()
        heard = set().union(*(listeners(process.pid) for process in ranks.processes))
        assert heard and heard <= {"127.0.0.1", "::1"}
        for rank in range(WORLD):  # as torchrun does
            ranks.send(rank, signal.SIGTERM)
        assert ranks.codes(range(WORLD), 20) == [3] * WORLD, ranks.errors()
    assert json.loads((tmp_path / "result.json").read_text())["unfinished"] == [0, 1, 2, 3]
    assert main(["serve", "--journal", str(ranks.journal), "--json", str(tmp_path / "rest.json")]) == 0
    rest = json.loads((tmp_path / "rest.json").read_text())["requests"]
    assert main(["serve", str(prompts), "--json", str(tmp_path / "whole.json")]) == 0
    whole = json.loads((tmp_path / "whole.json").read_text())["requests"]
    assert [(r["id"], r["text"]) for r in rest] == [(r["id"], r["text"]) for r in whole]


def test_links_go_where_they_are_told(monkeypatch) -> None:
    for name in LINK_VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    two = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(ValueError, match=r"4 ranks, of which 2 on this machine.*--interface"):
        bind_links(two, None)
    with pytest.raises(ValueError, match=r"interface='nowhere0': this machine has .*lo"):
        bind_links(two, "nowhere0")
    bind_links(two | {"GLOO_SOCKET_IFNAME": "eth7"}, None)  # told by gloo's own variable: left as it is
    assert not any(os.environ.get(name) for name in LINK_VARIABLES)
    bind_links({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, None)
    assert [os.environ[name] for name in LINK_VARIABLES] == ["lo", "lo"]
