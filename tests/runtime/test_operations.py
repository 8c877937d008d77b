"""Cancelling, draining, dying and going on: whatever happens to a server, no accepted request is lost or changed."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from test_engine import OUTPUT, QUESTIONS, embedded, page_bytes, stock_tokens, tokens_of, workload

from pikv_runtime.__main__ import UNFINISHED, main
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control
from pikv_runtime.engine import Engine, NothingToServeError
from pikv_runtime.inbox import Inbox
from pikv_runtime.journal import JournalError
from pikv_runtime.journal_format import recover
from pikv_runtime.ledger import Status, check_integrity
from pikv_runtime.requests import RequestList

EXACT = RuntimeConfig(slots=4, max_batch_tokens=48, blocks=128, interval_s=0.05)
LOSSY = RuntimeConfig(
    slots=4, blocks=128, codec="bf16", read="sparse", router="centroid", interval_s=0.05, observe_tokens=4
)
SLOW = partial(pytest.param, marks=pytest.mark.slow)
LEFT = RequestList("journal", 0.0, ())  # nothing but what the journal knows


class Crash(Exception):
    """Stands for the process's death: nothing of the engine runs after it."""


class Doomed(Engine):
    """Dies after `life` iterations: before or after the journal has heard of the last one."""

    life = 0

    def _postprocess(self, result, started):
        super()._postprocess(result, started)
        self.life -= 1
        if self.life == 0:
            raise Crash


def crashed(path: Path, life: int, config=EXACT, policy=None, ranks=1) -> dict[int, list[int]]:
    """Serve until the crash; returns what clients got of every request, finished or not."""
    engine = Doomed(embedded()[0], config, policy, ranks, journal=path)
    engine.life = life
    with pytest.raises(Crash):
        list(engine.run(workload()))
    os.close(engine.journal._file)  # as the kernel does: no farewell
    return {r.request_id: list(output) for r, output in zip(engine.requests, engine.outputs, strict=True)}


def restarted(path: Path, asked=LEFT, config=EXACT, policy=None, ranks=1) -> tuple[Engine, dict[int, list[int]]]:
    engine = Engine(embedded()[0], config, policy, ranks, journal=path)
    try:
        return engine, tokens_of({done.request.request_id: done for done in engine.run(asked)})
    finally:
        engine.journal.close()


@pytest.mark.parametrize(("life", "ranks"), [SLOW(1, 1), (25, 1), SLOW(25, 2)])
def test_a_restarted_engine_finishes_with_the_same_tokens(tmp_path: Path, life: int, ranks: int) -> None:
    path = tmp_path / "journal"
    before = crashed(path, life, ranks=ranks)
    engine, served = restarted(path, ranks=ranks)
    over = {q: engine.recovered.said[q] for q in engine.recovered.ended}
    assert over | served == stock_tokens() and not over.keys() & served.keys()
    assert all(tokens == stock_tokens()[q][: len(tokens)] for q, tokens in before.items())
    # What had been said is not computed anew as decode steps.
    assert engine.progress.generated == sum(len(served[q]) - len(before[q]) for q in served)
    assert recover(path.read_bytes()).unfinished == []
    with pytest.raises(NothingToServeError, match="no request is left"):
        restarted(path)


def test_the_same_command_again_serves_what_is_left(tmp_path: Path) -> None:
    crashed(tmp_path / "journal", 25)
    engine, served = restarted(tmp_path / "journal", workload())
    assert served and engine.recovered.ended
    assert served.keys() | engine.recovered.ended.keys() == stock_tokens().keys()
    assert served.items() <= stock_tokens().items()


def test_a_journal_takes_new_requests_and_no_others_under_old_names(tmp_path: Path) -> None:
    crashed(tmp_path / "journal", 25)
    found = recover((tmp_path / "journal").read_bytes())
    over = next(iter(found.ended))  # it is over, and still not to be taken for another
    first = workload().requests[over]
    other = replace(first, prompt_ids=first.prompt_ids + 1)
    with pytest.raises(JournalError, match=f"request {over} is another one there"):
        restarted(tmp_path / "journal", RequestList("other", 0.0, (other,)))
    late = replace(first, request_id=50, arrival_s=3.0)
    engine, served = restarted(tmp_path / "journal", RequestList("more", 3.0, (late,)))
    assert served.items() >= {50: stock_tokens()[over]}.items() and len(served) > 1
    arrivals = {r.request_id: r.arrival_s for r in engine.requests}
    assert arrivals[50] == 3.0 and max(arrivals.values()) == 3.0
    assert recover((tmp_path / "journal").read_bytes()).requests[50].arrival_s == found.clock_s + 3.0


@pytest.mark.slow
def test_dying_again_and_again_loses_nothing(tmp_path: Path) -> None:
    path, lives = tmp_path / "journal", 0
    while lives < 20:
        engine = Doomed(embedded()[0], EXACT, journal=path)
        engine.life, lives = 14, lives + 1  # long enough for a prefill
        try:
            list(engine.run(workload()))
            break
        except Crash:
            os.close(engine.journal._file)
    found = recover(path.read_bytes())
    assert 3 < lives < 20 and found.said == stock_tokens() and found.unfinished == []


def test_what_a_client_has_seen_stays_under_a_lossy_policy(tmp_path: Path) -> None:
    policy = "static:ratio=3,evict=0.3,fan_out=0.3/h2o"
    before = crashed(tmp_path / "journal", 14, LOSSY, policy)
    engine, served = restarted(tmp_path / "journal", config=LOSSY, policy=policy)
    assert any(0 < len(before[q]) < OUTPUT for q in served)
    for q, tokens in served.items():
        assert len(tokens) == OUTPUT and tokens[: len(before[q])] == before[q]
    check_integrity(engine.ledger)


@pytest.mark.slow
def test_a_recovered_request_that_does_not_fit_any_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    crashed(path, 9)
    longest = max(workload().requests, key=lambda r: r.prompt_tokens)
    tight = RuntimeConfig(
        slots=4, blocks=128, interval_s=0.05, cap_bytes=(longest.prompt_tokens + OUTPUT - 1) // 16 * page_bytes()
    )
    engine, served = restarted(path, config=tight)
    assert [r.request_id for r in engine.refused()] == [longest.request_id] and longest.request_id not in served
    found = recover(path.read_bytes())
    assert found.ended[longest.request_id] == "refused" and found.unfinished == []


# ---------------------------------------------------------------------- cancelling


class Caller:
    """A policy that does something at a given decision, between two intervals, as another thread would."""

    def __init__(self, at: int, act) -> None:
        self.at, self.act, self.calls = at, act, 0

    def decide(self, telemetry, out=None):
        out = out if out is not None else Control.neutral(len(telemetry.groups))
        neutral = Control.neutral(len(telemetry.groups))
        out.groups[:], out.globals[:] = neutral.groups, neutral.globals
        self.calls += 1
        if self.calls == self.at:
            self.act()
        return out


class Checked(Engine):
    """Checks the ledger and the tensors after every iteration."""

    def _postprocess(self, result, started):
        super()._postprocess(result, started)
        check_integrity(self.ledger)


def cancelling(numbers, at, config=EXACT, ranks=1, **options):
    engine = Checked(embedded()[0], config, None, ranks, **options)
    states = {}

    def act():
        for number in numbers:
            states[number] = Status(engine.ledger.req_status[0, number])
            engine.cancel(number)

    engine.policy = Caller(at, act)
    served = tokens_of({done.request.request_id: done for done in engine.run(workload())})
    return engine, served, states


@pytest.mark.parametrize("ranks", [1, SLOW(2)])
def test_cancelled_requests_free_their_pages_and_change_nobody_else(ranks: int) -> None:
    engine, served, states = cancelling((0, 1, 4), at=3, ranks=ranks, config=EXACT)
    assert Status.RUNNING in states.values() and Status.FUTURE in states.values()
    assert [r.request_id for r in engine.cancelled()] == [0, 1, 4]
    assert served == {q: tokens for q, tokens in stock_tokens().items() if q not in (0, 1, 4)}
    s = engine.ledger
    assert s.bytes_rank[0].sum() == s.cached_bytes[0].sum() and s.running_count[0] == 0
    stored = sum(sum(codecs.values()) for codecs in engine.runner.nbytes().values())
    assert stored == s.bytes_rank[0].sum()
    assert len(engine.outputs[0]) < OUTPUT and engine.outputs[4] == []


def test_a_waiting_and_a_preempted_request_can_be_cancelled() -> None:
    config = RuntimeConfig(slots=2, blocks=128, interval_s=0.02, cap_bytes=20 * page_bytes())
    _, served, states = cancelling((2, 3), at=12, config=config)
    assert Status.WAITING in states.values()
    assert served.keys() == {0, 1, 4} and served.items() <= stock_tokens().items()


def test_cancelling_late_twice_or_nobody(tmp_path: Path) -> None:
    engine, served, _ = cancelling((0,), at=1, journal=tmp_path / "journal")
    engine.cancel(0)
    engine.cancel(1)  # it is done
    with pytest.raises(ValueError, match=f"request 77: not among the {len(QUESTIONS)}"):
        engine.cancel(77)
    assert [r.request_id for r in engine.cancelled()] == [0] and 1 in served
    found = recover((tmp_path / "journal").read_bytes())
    assert found.ended == {0: "cancelled"} | dict.fromkeys(served, "done")


def test_a_cancelled_request_is_charged_for_its_time_only() -> None:
    served = Engine(embedded()[0], EXACT)
    list(served.run(workload()))
    engine, _, _ = cancelling((4,), at=1)  # before it came
    assert engine.ledger.req_status[0, 4] == Status.CANCELLED
    assert engine.ledger.waiting_rate[0] == pytest.approx(0, abs=1e-12)
    assert engine.ledger.decode_rate[0] == pytest.approx(0, abs=1e-12)
    assert engine.score().latency < served.score().latency
    assert engine.costs().classes[0].finished == served.costs().classes[0].finished - 1


# ---------------------------------------------------------------------- draining


def test_draining_finishes_what_runs_and_starts_nothing(tmp_path: Path) -> None:
    path, inbox, ran = tmp_path / "journal", Inbox(), []
    config = RuntimeConfig(slots=2, blocks=128, interval_s=0.02)
    engine = Engine(embedded()[0], config, journal=path, inbox=inbox)

    def act():
        ran.extend(engine.ledger.slot_request[0].tolist())
        inbox.drain(60)

    engine.policy = Caller(8, act)
    served = tokens_of({done.request.request_id: done for done in engine.run(workload())})
    engine.journal.close()
    assert served.keys() == set(ran) and len(ran) == 2 and engine.cancelled() == []
    assert engine.progress.unfinished() == [q for q in range(len(QUESTIONS)) if q not in ran]
    _, rest = restarted(path)
    assert served | rest == stock_tokens()


def test_at_the_deadline_what_still_runs_goes_to_the_journal(tmp_path: Path) -> None:
    path, inbox = tmp_path / "journal", Inbox()
    engine = Engine(embedded()[0], EXACT, Caller(3, lambda: inbox.drain(0)), journal=path, inbox=inbox)
    assert list(engine.run(workload())) == []
    engine.journal.close()
    assert any(engine.outputs) and engine.progress.unfinished() == list(range(len(QUESTIONS)))
    _, rest = restarted(path)
    assert rest == stock_tokens()


def test_an_inbox_takes_the_earlier_deadline_and_letters_from_threads() -> None:
    from pikv_runtime.inbox import Stage
    from pikv_runtime.transport import LocalTransport

    inbox, transport = Inbox(), LocalTransport(2)
    threads = [threading.Thread(target=inbox.cancel, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heard = inbox.look(transport)
    assert sorted(heard.cancelled) == list(range(8)) and heard.stage == Stage.SERVE
    inbox.drain(100)
    assert inbox.look(transport).stage == Stage.DRAIN and inbox.look(transport).cancelled == []
    inbox.drain(0)
    inbox.drain(100)
    assert inbox.look(transport).stage == Stage.STOP
    assert transport.sent_bytes["control"] == 0  # one process: nothing travels


# ---------------------------------------------------------------------- signals, full disks: the command


LONG = 32
ROWS = [{"prompt": f"{n}. The code of the red door is 4417; the code of the", "output_tokens": LONG} for n in range(3)]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("asked") / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def in_child(arguments: list[str], watch) -> int:
    """Run the command in a process of its own, call `watch(process)` while it runs; returns its exit code."""
    embedded()  # before the fork: the child has it
    process = get_context("fork").Process(target=lambda: os._exit(main(arguments)))
    process.start()
    watch(process)
    process.join(60)
    assert process.exitcode is not None, "it did not end"
    return process.exitcode


def wait_for(holds, process) -> None:
    """Until the journal says so, or the process is gone."""
    while process.is_alive() and not holds():
        process.join(0.005)


def texts(path: Path) -> dict[int, str]:
    result = json.loads(path.read_text())
    return {r["id"]: r["text"] for r in result["requests"]} | {
        r["id"]: r["text"] for r in result["recovered"] if r["how"] == "done"
    }


@pytest.fixture(scope="module")
def expected(prompts: Path) -> dict[int, str]:
    whole = prompts.with_name("whole.json")
    assert main(["serve", str(prompts), "--json", str(whole)]) == 0
    return texts(whole)


def spoken(journal: Path) -> int:
    return sum(map(len, recover(journal.read_bytes()).said.values())) if journal.exists() else 0


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("drain_s", "signals", "code"),
    [SLOW(60, [signal.SIGTERM], 0), (0, [signal.SIGTERM], UNFINISHED), SLOW(60, [signal.SIGTERM] * 2, -signal.SIGTERM)],
    ids=["drained", "stopped", "twice"],
)
def test_sigterm_loses_nothing(prompts, tmp_path, expected, drain_s, signals, code) -> None:
    journal, result = tmp_path / "journal", tmp_path / "result.json"
    command = ["serve", str(prompts), "--journal", str(journal), "--json", str(result), "--drain-s", str(drain_s)]

    def terminate(process):
        wait_for(lambda: spoken(journal) >= 6, process)
        for number in signals:
            os.kill(process.pid, number)
            process.join(0.05)

    assert in_child(command, terminate) == code
    assert result.exists() == (code >= 0)
    if code == 0:
        assert texts(result) == expected
    else:
        assert len(recover(journal.read_bytes()).unfinished) == len(ROWS)
        assert main(["serve", "--journal", str(journal), "--json", str(result)]) == 0
        assert texts(result) == expected


@pytest.mark.distributed
def test_a_killed_server_loses_nothing(prompts, tmp_path, expected) -> None:
    journal, result = tmp_path / "journal", tmp_path / "result.json"
    command = ["serve", str(prompts), "--journal", str(journal), "--json", str(result)]

    def kill(process):
        wait_for(lambda: spoken(journal) >= 12, process)
        process.kill()

    assert in_child(command, kill) == -signal.SIGKILL
    assert recover(journal.read_bytes()).unfinished and not result.exists()
    assert main([*command, "--ranks", "2"]) == 0  # another number of ranks: exact all the same
    assert texts(result) == expected
    assert main(command) == 0  # nothing is left; what was said is told again
    assert texts(result) == expected and json.loads(result.read_text())["requests"] == []


def test_bad_operations_are_one_line(prompts, tmp_path, capsys) -> None:
    for arguments, message in (
        (["serve"], "nothing to serve: give a file of prompts"),
        (["serve", "--journal", str(tmp_path / "none" / "j")], "No such file or directory"),
        (["serve", "--journal", str(prompts)], "no journal (line 1: not an object with a checksum)"),
        (["serve", str(prompts), "--drain-s", "-1"], "drain_s=-1.0"),
        (["serve", str(prompts), "--timeout-s", "0"], "timeout_s=0.0"),
        (["serve", str(prompts), "--metrics-port", "70000"], "metrics_port=70000: allowed 0..65535"),
    ):
        assert main(arguments) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], arguments
