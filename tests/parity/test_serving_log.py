"""The log of a live run, replayed through the simulator: the same decisions, or the place where they part."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from pikv_env.log_replay import LogReplay, model_log, replay_log
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.engine import Engine
from pikv_runtime.models import load_model
from pikv_runtime.policy import load_policy
from pikv_runtime.requests import Request, RequestList, chain_hashes
from pikv_runtime.serving_log import LogError, ServingLog, ServingRecorder

PAGE, OUTPUT = 16, 14
SHARED = "The code of the red door is 4417; the code of the blue door is 9031. " * 2
QUESTIONS = ("The code of the blue door is", "def add(a, b):\n    return a + b\n" * 3, "ada=713;ben=208;cleo=955;" * 4)
CONFIG = RuntimeConfig(
    slots=3, blocks=128, codec="bf16", read="sparse", router="centroid", interval_s=0.1, observe_tokens=4,
    max_batch_tokens=64, audit_share=0.5, cap_bytes=32 * 4 * 8192,
)  # fmt: skip
LOSSY = "static:ratio=3,evict=0.3,fan_out=0.5,window=1/h2o"


@functools.cache
def model():
    return load_model("embedded")[0]


@functools.cache
def workload() -> RequestList:
    requests = []
    for q in range(6):
        ids = np.frombuffer((SHARED + QUESTIONS[q % 3]).encode(), np.uint8).astype(np.int32)
        hashes = np.zeros((len(ids) + OUTPUT) // PAGE, np.int64)
        prompt = chain_hashes(ids, PAGE)
        hashes[: len(prompt)] = prompt
        requests.append(Request(q, 0.05 * q, len(ids), OUTPUT, hashes, q % 2, prompt_ids=ids))
    return RequestList("questions", 0.3, tuple(requests))


@functools.cache
def served(policy: str, clock: str, ranks: int = 1, config: RuntimeConfig = CONFIG) -> ServingLog:
    engine = Engine(model(), config, policy, ranks=ranks, clock=clock)
    engine.load(workload())
    engine.measure()
    recorder = ServingRecorder(engine, policy)
    done = False
    while not done:
        engine.decide()
        done = engine.run_interval()
        engine.measure()
    engine.close()
    return recorder.log()


def changed(log: ServingLog, name: str, change) -> ServingLog:
    arrays = dict(log.arrays)
    arrays[name] = arrays[name].copy()
    change(arrays[name])
    return replace(log, arrays=arrays)


def replayed(log: ServingLog) -> LogReplay:
    return replay_log(log, load_policy(log.header["policy"]))


@pytest.mark.parametrize(("policy", "ranks"), [(LOSSY, 1), (LOSSY, 2), ("lazy/lru", 1)])
def test_a_run_on_the_wall_clock_is_decided_again_alike(policy: str, ranks: int, tmp_path) -> None:
    log = ServingLog.load(served(policy, "wall", ranks).save(tmp_path / "run.npz"))
    found = replayed(log)
    assert found.identical and found.decided_by == "policy"
    assert found.iterations == log.iterations > 15
    assert found.logged == found.replayed
    assert found.logged["hit_rate"] > 0
    if policy == LOSSY:
        assert found.logged["evicted_pages"] > 0 and found.logged["encoded_pages"] > 0 and found.logged["loss"] > 0


def test_the_block_rule_of_the_run_is_replayed() -> None:
    tight = replace(CONFIG, cap_bytes=16 * 4 * 8192, block_rule="sieve")
    log = served("lazy/lru", "wall", 1, tight)
    assert log.header["block_rule"] == "sieve" and replayed(log).identical


def test_the_file_is_small(tmp_path) -> None:
    log = served(LOSSY, "wall")
    assert (
        log.save(tmp_path / "run.npz").stat().st_size < 2000 * log.iterations
    )  # one observation in four steps; one in 32 is usual


def test_without_the_policy_the_logs_controls_are_taken() -> None:
    found = replay_log(served(LOSSY, "wall"))
    assert found.identical and found.decided_by == "log"


def test_the_signals_by_request_are_those_of_the_run() -> None:
    # On the model clock nothing but the signals could differ: they are looked up by request and page here.
    log = served(LOSSY, "model")
    assert replayed(log).identical
    assert model_log(log, load_policy(LOSSY)) == replayed(log).logged


def test_modelled_times_are_not_the_logged_ones() -> None:
    log = served(LOSSY, "wall")
    modelled, logged = model_log(log, load_policy(LOSSY)), replayed(log).logged
    assert modelled["busy_s"] != logged["busy_s"] and modelled["bytes_mean"] > 0
    twice = model_log(log, load_policy(LOSSY), prices=2 * log.arrays["prices"])
    assert twice["busy_s"] > 1.5 * modelled["busy_s"]


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("seconds", lambda a: a.__setitem__(7, a[7] * 1.001), "iteration 7: clock_s"),
        ("plan", lambda a: a.__setitem__((5, 0), a[5, 0] + 1), "iteration 5: plan"),
        ("decided_groups", lambda a: a.__setitem__((1, 0, 1), 1.5), "decision 1: control"),
        ("told_globals", lambda a: a.__setitem__((1, 0), -1.0), "decision 1: telemetry"),
        ("final_tally", lambda a: a.__setitem__(17, a[17] + 1), "end: tally hit_tokens"),
    ],
)
def test_what_was_tampered_with_is_named(name: str, change, expected: str) -> None:
    assert replayed(changed(served(LOSSY, "wall"), name, change)).first_difference == expected


def test_a_perturbed_signal_shows_in_the_ledger() -> None:
    log = served(LOSSY, "wall")
    at = int(log.arrays["seen_at"][2])
    found = replayed(changed(log, "mass", lambda a: a.__setitem__(2, a[2] * 0.9)))
    assert found.first_difference in (f"iteration {at}: {name}" for name in ("tally", "page_mass", "req_loss"))


def test_a_log_that_ends_early_is_replayed_as_far_as_it_goes() -> None:
    log = served(LOSSY, "wall")
    found = replay_log(replace(log, arrays={**log.arrays, "decided_at": log.arrays["decided_at"][:1]}))
    assert found.first_difference.startswith(f"iteration {found.iterations}: over, ")


def test_unsound_files_are_refused(tmp_path) -> None:
    log = served(LOSSY, "wall")
    whole = log.save(tmp_path / "run.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("no log")
    replace(log, header={**log.header, "contract": "other"}).save(tmp_path / "other.npz")
    replace(log, arrays={**log.arrays, "seconds": log.arrays["seconds"][:-1]}).save(tmp_path / "short.npz")
    for name, why in (("cut", "sound"), ("text", "sound"), ("other", "contract 'other'"), ("short", "rows")):
        with pytest.raises(LogError, match=why):
            ServingLog.load(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        log.save(tmp_path / "run.log")


def test_recording_refuses_what_it_cannot_keep() -> None:
    engine = Engine(model(), CONFIG, "lazy/lru", clock="model")
    engine.load(workload())
    engine.measure()
    engine.decide()
    engine.run_interval()
    with pytest.raises(ValueError, match="before the first iteration"):
        ServingRecorder(engine)
