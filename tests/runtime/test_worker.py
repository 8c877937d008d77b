"""Policies in Python run elsewhere: what they say is obeyed, what they do to themselves never stalls a decision."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.policy import Guard, GuardLimits, WorkerError, WorkerPolicy, load_policy, random_telemetry

SOURCE = """
import os, time, sys
import numpy as np

class Doubling:
    def __init__(self):
        print("this must not get between the answers")
        self.asked = 0
    def decide(self, telemetry, out):
        self.asked += 1
        trouble = telemetry.globals[0]
        if trouble == 1:
            time.sleep(0.5)
        if trouble == 2:
            os._exit(3)
        if trouble == 3:
            raise KeyError("no such thing")
        if trouble == 4:
            time.sleep(60)
        if trouble == 5:
            out.groups = np.zeros((1, 1), np.float32)
        if trouble == 6:
            os.write(1, b"x" * 100); os.write(self.pipe(), b"garbage that is no frame")
        out.groups[:] = 2 * telemetry.groups[:, :out.groups.shape[1]]
        out.globals[:] = self.asked
        return out
    def pipe(self):
        return max(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
                   and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe") and int(fd) > 2)

class Unmakeable:
    def __init__(self):
        raise RuntimeError("no licence")

class Mute:
    pass
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("worker") / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def worker(source):
    worker = WorkerPolicy(f"python:{source}:Doubling", timeout_s=0.2)
    worker.prepare()
    yield worker
    worker.close()


def told(trouble=0.0, groups=4):
    telemetry = random_telemetry(groups, np.random.default_rng(0))
    telemetry.globals[0] = trouble
    return telemetry


def until_it_answers(worker, seconds=20.0):
    """Ask until there is an answer; the number of decisions that went without one."""
    deadline, missed = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        try:
            worker.decide(told())
            return missed
        except (TimeoutError, WorkerError):
            missed += 1
            time.sleep(0.05)
    pytest.fail(f"no answer within {seconds} s")


@pytest.mark.parametrize("groups", [1, 4, 2000])  # the last does not fit into a pipe at once
def test_it_decides_as_the_class_does(worker, groups):
    telemetry, out = told(groups=groups), Control.zeros(groups)
    for k in range(1, 4):
        assert worker.decide(telemetry, out) is out
        np.testing.assert_array_equal(out.groups, 2 * telemetry.groups[:, : out.groups.shape[1]])
        assert (out.globals == k).all()


def test_a_late_answer_is_not_taken_for_the_next_one(worker):
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        worker.decide(told(1))
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="still busy"):
        worker.decide(told())
    assert time.monotonic() - begin < 0.1, "it is not waited for twice"
    assert until_it_answers(worker) >= 0
    telemetry = random_telemetry(4, np.random.default_rng(7))
    telemetry.globals[0] = 0
    answer = worker.decide(telemetry)
    np.testing.assert_array_equal(answer.groups, 2 * telemetry.groups[:, : answer.groups.shape[1]])


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [(2, "its process ended"), (6, "which is no frame")],
    ids=["dies", "writes into the pipe"],
)
def test_what_breaks_is_started_again(worker, trouble, reason):
    with pytest.raises(WorkerError, match=f"{reason}.*it was started again"):
        worker.decide(told(trouble))
    until_it_answers(worker)
    assert worker.restarts == 1


def test_what_hangs_is_started_again(source):
    worker = WorkerPolicy(f"python:{source}:Doubling", timeout_s=0.2, patience_s=0.5)
    worker.prepare()
    with pytest.raises(TimeoutError):
        worker.decide(told(4))
    with pytest.raises(TimeoutError, match="still busy"):
        worker.decide(told())
    time.sleep(0.5)
    with pytest.raises(WorkerError, match="has not answered for too long; it was started again"):
        worker.decide(told())
    until_it_answers(worker)
    worker.close()


def test_a_process_that_stands_still_costs_one_time_out(worker):
    os.kill(worker._process.pid, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises((TimeoutError, WorkerError)):
        worker.decide(told(groups=4000))  # more than the pipe takes
    assert time.monotonic() - begin < 0.2 + 0.2


def test_errors_of_the_class_are_named_and_do_not_end_it(worker):
    with pytest.raises(WorkerError, match="raised KeyError: 'no such thing'"):
        worker.decide(told(3))
    with pytest.raises(WorkerError, match="raised "):
        worker.decide(told(5))
    assert worker.restarts == 0 and (worker.decide(told()).globals == 3).all()


def test_it_gives_up_after_so_many_restarts(source):
    worker = WorkerPolicy(f"python:{source}:Doubling", timeout_s=5.0, most_restarts=1)
    with pytest.raises(WorkerError, match="started again"):
        worker.decide(told(2))
    until_it_answers(worker)
    with pytest.raises(WorkerError, match="after 1 restarts"):
        worker.decide(told(2))
    begin = time.monotonic()
    with pytest.raises(WorkerError, match="after 1 restarts"):
        worker.decide(told())
    assert time.monotonic() - begin < 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("python:{}:Unmakeable", "RuntimeError: no licence"),
        ("python:{}:Mute", "Mute has no method decide"),
        ("python:{}:Absent", "has no attribute 'Absent'"),
        ("python:no_such_module:Absent", "No module named 'no_such_module'"),
    ],
)
def test_a_class_that_cannot_be_made_says_why(source, name, message):
    with pytest.raises(WorkerError, match=message) as caught:
        WorkerPolicy(name.format(source)).prepare()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["python:mine.py", "python:", "python:mine.py:not a name", "python:absent.py:Mine"])
def test_a_spec_that_names_no_class_is_refused(spec):
    with pytest.raises(ValueError, match=r"python:FILE\.py:CLASS|no file .absent\.py"):
        load_policy(spec)


def test_behind_the_guard_the_fallback_decides_within_the_time_out(source):
    guard = load_policy(f"python:{source}:Doubling", limits=GuardLimits(timeout_us=100_000, recover_after=1))
    assert isinstance(guard, Guard)
    guard.prepare()
    telemetry = Telemetry.zeros(4)
    guard.decide(telemetry)
    assert not guard.engaged
    telemetry.globals[0] = 1  # pressure 1 is credible, and makes it sleep
    begin = time.monotonic()
    guard.decide(telemetry)
    assert time.monotonic() - begin < 0.25 and guard.engaged and guard.reason == "timeout"
    guard.policy.close()
