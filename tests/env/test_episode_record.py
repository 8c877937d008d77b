"""Episode records: what was played can be played again to the same numbers; all else is refused with the reason."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from trace_kit import PRICES_S, SMALL, library, make_batch, random_controls, write_profile

from pikv_env.episode_record import EpisodeRecord, EpisodeRecorder, RecordError
from pikv_env.record_wrapper import RecordEpisodes, write_record
from pikv_env.replay import Replayer
from pikv_env.traces import synthetic_library


def recorded(seed: int = 0, **fields) -> EpisodeRecord:
    """A whole episode in lane 1 of 2, under random controls that are partly out of range."""
    batch = make_batch(2, **fields)
    batch.reset_lane(0)
    batch.reset_lane(1, pressure=2.0, lambdas=(0.3, 7.0))
    recorder, rng = EpisodeRecorder(batch, 1, "random"), np.random.default_rng(seed)
    while not batch.done[1]:
        random_controls(batch, rng)
        batch.control_groups *= rng.uniform(0.5, 1.5)
        batch.step()
        recorder.add()
    return recorder.record()


@pytest.fixture(scope="module")
def record() -> EpisodeRecord:
    return recorded(slo=0.9, fidelity_floor=0.9)


@pytest.fixture(scope="module")
def replayer() -> Replayer:
    return Replayer(library())


def test_a_record_replays_to_the_same_numbers(record, replayer, tmp_path) -> None:
    record.save(tmp_path / "episode.npz")
    found = replayer.replay(EpisodeRecord.load(tmp_path / "episode.npz"))
    assert found.identical and found.difference == ""
    assert found.replayed == found.recorded == record.final
    assert found.intervals == len(record.parts) == record.final["steps"]


def test_the_record_adds_up(record) -> None:
    lambda1, lambda2 = record.header["episode"]["lambdas"]
    latency, memory, loss = record.parts.sum(axis=0)
    assert record.final["J"] == pytest.approx(latency + lambda1 * memory + lambda2 * loss)
    assert record.final["cost"] == pytest.approx(record.costs.sum(), abs=1e-12)
    assert record.header["env"]["slo"] == 0.9


def test_equal_episodes_give_equal_and_small_files(record, tmp_path) -> None:
    again = recorded(slo=0.9, fidelity_floor=0.9)
    assert again.to_bytes() == record.to_bytes()
    raw = sum(getattr(record, name).nbytes for name in ("control_groups", "control_globals", "parts", "costs"))
    constant = replace(record, control_groups=np.zeros_like(record.control_groups))
    assert len(constant.to_bytes()) < raw / 2
    one, two = write_record(record, tmp_path), write_record(record, tmp_path)
    assert one != two and one.read_bytes() == two.read_bytes()
    assert one.name.startswith(record.header["episode"]["family"]) and "random" in one.name


def test_a_changed_record_differs_at_the_interval_that_was_changed(record, replayer) -> None:
    parts = record.parts.copy()
    parts[5, 1] = np.nextafter(parts[5, 1], 1.0)
    found = replayer.replay(replace(record, parts=parts))
    assert not found.identical and found.difference.startswith("interval 5: memory was ")
    controls = record.control_globals.copy()
    controls[3] = 1.0
    assert "interval 3: " in replayer.replay(replace(record, control_globals=controls)).difference
    final = {**record.header, "final": {**record.final, "iterations": -1}}
    assert replayer.replay(replace(record, header=final)).difference.startswith("iterations was -1")


def _header(**changes):
    return lambda record: replace(record, header={**record.header, **changes})


def _rewritten(whole: EpisodeRecord, **members: bytes | None) -> bytes:
    """The record's file with some members replaced (None: left out)."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole.to_bytes())) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = members.get(name.split(".")[0], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return out.getvalue()


def _pickled() -> bytes:
    member = io.BytesIO()
    np.save(member, np.array([[object()]], object), allow_pickle=True)
    return member.getvalue()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.to_bytes()[:-40], "not a sound episode record"),
        (lambda r: b"", "not a zip file"),
        (lambda r: bytes(b ^ 1 if k == 900 else b for k, b in enumerate(r.to_bytes())), "not a sound episode record"),
        (lambda r: _rewritten(r, parts=None), "parts.npy"),
        (lambda r: _rewritten(r, parts=_pickled()), "allow_pickle"),
        (lambda r: _rewritten(r, record=b"[]"), "format"),
        (lambda r: _rewritten(r, record=b'{"format": "another"}'), "format"),
        (lambda r: replace(r, parts=r.parts[:-1]).to_bytes(), "parts has shape"),
        (lambda r: replace(r, costs=r.costs.astype(np.float32)).to_bytes(), "costs is float32"),
        (lambda r: _header(contract="0" * 16)(r).to_bytes(), "of contract '0000"),
        (lambda r: _header(objective_version=99)(r).to_bytes(), "objective version 99"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(record, tmp_path, damage, message: str) -> None:
    path = tmp_path / "wrong.npz"
    path.write_bytes(damage(record))
    with pytest.raises(RecordError, match=message) as raised:
        EpisodeRecord.load(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_header(library="f" * 16), "recorded over trace library ffff"),
        (_header(workload_fingerprint="f" * 16), "its generator has changed"),
        (_header(prices="f" * 16), "other prices"),
        (_header(pool_env={"horizon": 3}), "cannot be made here.*did you mean 'horizon_s'"),
        (_header(pool_env={"profile": "no/such.json"}), "cannot be made here"),
        (_header(pool_env={"families": ["facts-poison"]}), "cannot be made here.*did you mean 'facts-poisson'"),
        (_header(episode={"workload": 77}), "workload 77: its configuration prepares 2"),
        (_header(episode={}), "its header is not whole"),
        (lambda r: _header(episode={**r.header["episode"], "pressure": "high"})(r), "not whole or sound.*'high'"),
        (lambda r: replace(r, control_groups=r.control_groups[:, :4]), "4 control groups"),
    ],
)
def test_what_cannot_be_played_here_is_refused(record, replayer, change, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        replayer.replay(change(record))


def test_another_library_is_refused(record) -> None:
    with pytest.raises(RecordError, match="recorded over trace library"):
        Replayer(synthetic_library(1, contents_per_family=8)).replay(record)


def test_a_profile_that_was_measured_anew_is_refused(record, replayer, tmp_path) -> None:
    other = write_profile(tmp_path, step=PRICES_S["step"] * 1.01)
    header = {**record.header, **{name: {**record.header[name], "profile": other} for name in ("env", "pool_env")}}
    with pytest.raises(RecordError, match="other prices"):
        replayer.replay(replace(record, header=header))


def test_recording_starts_at_reset() -> None:
    batch = make_batch(1)
    batch.reset_lane(0)
    batch.step()
    with pytest.raises(ValueError, match="1 intervals into its episode"):
        EpisodeRecorder(batch, 0)


def test_the_wrapper_writes_every_episode_that_ends(replayer, tmp_path) -> None:
    env = RecordEpisodes(gym.make("PiKV/Trace-v0", library=library(), **SMALL), tmp_path / "kept", "sampled")
    env.action_space.seed(0)
    paths = []
    for seed in (0, 1, 1):
        env.reset(seed=seed)
        over = False
        while not over:
            *_, over, _, info = env.step(env.action_space.sample())
        paths.append(info["record"])
        env.reset()
        env.step(env.action_space.sample())  # never finished: not written
    assert sorted(paths) == sorted(str(p) for p in (tmp_path / "kept").iterdir()) and len(set(paths)) == 3
    for path in paths:
        loaded = EpisodeRecord.load(path)
        assert loaded.header["policy"] == "sampled" and json.dumps(loaded.header)
        assert replayer.replay(loaded).identical
    with pytest.raises(ValueError, match="cannot be recorded"):
        RecordEpisodes(gym.make("CartPole-v1"), tmp_path)
