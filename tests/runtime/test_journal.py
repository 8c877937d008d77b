"""The journal: what it promises is on the disk, what is damaged is named, a full disk loses nothing accepted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from pikv_runtime.journal import Journal, JournalError
from pikv_runtime.journal_format import line_of, recover, row_of
from pikv_runtime.requests import Request

MADE_FOR = {"page_tokens": 16, "model": "mixtral-1"}


def request(number: int, prompt: int = 5, output: int = 4) -> Request:
    ids = np.arange(prompt, dtype=np.int32) + number
    return Request(
        number, 0.5 * number, prompt, output, np.array([number + 1, 0], np.int64), number % 2, prompt_ids=ids
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@contextlib.contextmanager
def disk_full(path: Path, spare: int = 0):
    """No file of this process may grow beyond the journal's size and `spare` bytes: the kernel cuts writes short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def written(path: Path) -> Journal:
    """Three requests: 0 is done, 1 was refused, 2 has said two of its four tokens."""
    journal = Journal(path)
    journal.accept([request(0), request(1), request(2)], **MADE_FOR)
    journal.end(1, "refused")
    for token in (7, 8):
        journal.tokens([(0, token), (2, token + 10)], clock_s=token / 10)
    for token in (9, 10):
        journal.tokens([(0, token)], clock_s=1.0)
    journal.end(0, "done")
    return journal


def test_what_is_written_is_read_again(path: Path) -> None:
    written(path).close()
    found = Journal(path).recovered
    assert found.skipped == [] and found.clock_s == 1.0
    assert found.ended == {0: "done", 1: "refused"}
    assert found.said == {0: [7, 8, 9, 10], 1: [], 2: [17, 18]}
    (left,) = found.unfinished
    assert (left.request_id, left.arrival_s, left.output_tokens, left.class_id) == (2, 1.0, 4, 0)
    np.testing.assert_array_equal(left.prompt_ids, request(2).prompt_ids)
    np.testing.assert_array_equal(left.hash_ids, [3, 0])
    assert os.stat(path).st_mode & 0o077 == 0  # prompts are nobody else's business


def test_every_line_is_json_with_a_checksum_of_itself(path: Path) -> None:
    written(path).close()
    for line in path.read_bytes().splitlines(keepends=True):
        row = row_of(line)
        assert line_of(row) == line
        changed = json.loads(line)
        changed["kind"] += "x"
        with pytest.raises(ValueError, match="checksum"):
            row_of(json.dumps(changed).encode())


@pytest.mark.parametrize("damage", [b"not json at all", b'{"kind":"end"}', b"[1,2]", b"\xff\xfe\x00", b""])
def test_a_damaged_line_is_named_and_the_rest_recovered(path: Path, caplog, damage: bytes) -> None:
    written(path).close()
    lines = path.read_bytes().splitlines()
    assert row_of(lines[3])["id"] == 2
    lines[4] = damage  # that request 1 was refused
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = Journal(path).recovered
    assert [number for number, _ in found.skipped] == [5]
    assert f"journal {path}: line 5 skipped" in caplog.text
    assert [r.request_id for r in found.unfinished] == [1, 2] and found.said[2] == [17, 18]


def test_a_flipped_bit_anywhere_is_noticed(path: Path) -> None:
    written(path).close()
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(len(data), size=200):
        bad = bytearray(data)
        bad[at] ^= 1 << int(rng.integers(7))
        found = recover(bytes(bad))
        line = data[:at].count(b"\n") + 1
        assert found.skipped and {line} <= {number for number, _ in found.skipped} <= {line, line + 1}
        assert len(found.requests) >= 2


def test_tokens_behind_a_lost_line_are_said_again(path: Path) -> None:
    journal = Journal(path)
    journal.accept([request(0, output=6)], **MADE_FOR)
    for token in range(5):
        journal.tokens([(0, token)], clock_s=0.1 * token)
    lines = path.read_bytes().splitlines(keepends=True)
    found = recover(b"".join(lines[:4] + [b"lost\n"] + lines[5:]))  # the third token
    assert found.said[0] == [0, 1] and len(found.unfinished) == 1


def test_a_request_whose_line_is_lost_loses_no_other(path: Path) -> None:
    written(path).close()
    lines = path.read_bytes().splitlines(keepends=True)
    found = recover(b"".join([*lines[:3], b"lost\n", *lines[4:]]))
    assert found.unfinished == [] and found.ended[0] == "done" and 2 not in found.requests


def test_the_line_that_was_being_written_is_left_out(path: Path) -> None:
    written(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"crc":"0000')
    journal = Journal(path)
    assert journal.recovered.skipped == [] and len(journal.recovered.unfinished) == 1
    journal.accept([request(5)], **MADE_FOR)
    journal.close()
    assert path.read_bytes().startswith(whole) and recover(path.read_bytes()).skipped == []
    assert [r.request_id for r in Journal(path).recovered.unfinished] == [2, 5]


def test_accepted_again_is_accepted_once(path: Path) -> None:
    written(path).close()
    size = path.stat().st_size
    journal = Journal(path)
    journal.accept([request(0), request(2)], **MADE_FOR)
    assert path.stat().st_size == size
    with pytest.raises(JournalError, match="request 2 is another one there"):
        journal.accept([request(2, prompt=6)], **MADE_FOR)


def test_it_belongs_to_one_model_page_size_and_engine(path: Path, tmp_path: Path) -> None:
    journal = written(path)
    with pytest.raises(JournalError, match="another engine is writing it"):
        Journal(path)
    with pytest.raises(JournalError, match="page_tokens=16, the engine has 8"):
        journal.accept([], page_tokens=8, model="mixtral-1")
    with pytest.raises(JournalError, match="model='mixtral-1', the engine has 'other'"):
        journal.accept([], page_tokens=16, model="other")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    with pytest.raises(JournalError, match=r"prompts\.jsonl: no journal \(line 1: not an object with a checksum\)"):
        Journal(prompts)
    newer = tmp_path / "newer.jsonl"
    newer.write_bytes(line_of({"kind": "journal", "format": "pikv-journal/9"}))
    with pytest.raises(JournalError, match="pikv-journal/9"):
        Journal(newer)


def test_on_a_full_disk_new_requests_are_refused_and_nothing_is_half_written(path: Path) -> None:
    journal = written(path)
    before = path.read_bytes()
    with disk_full(path, spare=30), pytest.raises(JournalError, match=r"File too large; no new request is accepted"):
        journal.accept([request(6)], **MADE_FOR)
    assert path.read_bytes() == before
    journal.accept([request(6)], **MADE_FOR)
    assert 6 in recover(path.read_bytes()).requests


def test_a_disk_that_fills_up_costs_nothing_once_there_is_room(path: Path, caplog) -> None:
    journal = Journal(path)
    journal.accept([request(0), request(1)], **MADE_FOR)
    journal.tokens([(0, 1), (1, 1)], clock_s=0.1)
    with disk_full(path, spare=20):
        for token in (2, 3):
            journal.tokens([(0, token), (1, token)], clock_s=0.1 * token)
        journal.tokens([(0, 4)], clock_s=0.4)
        journal.end(0, "done")
        journal.sync()
        found = recover(path.read_bytes())  # what a restart would find now
        assert found.skipped == [] and found.said == {0: [1], 1: [1]} and len(found.unfinished) == 2
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1 and "File too large; serving goes on" in errors[0].message
    assert journal.write_errors == 4 and journal.failing
    journal.tokens([(1, 4)], clock_s=0.5)
    assert not journal.failing and "is written again; nothing is missing" in caplog.text
    found = recover(path.read_bytes())
    assert found.said == {0: [1, 2, 3, 4], 1: [1, 2, 3, 4]} and found.unfinished == [] and found.skipped == []
