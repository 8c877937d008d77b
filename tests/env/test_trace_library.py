"""Trace libraries: what they promise, what they survive on disk, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pikv_env.traces import TraceError, TraceLibrary, synthetic_library
from pikv_env.traces.hashing import mix, splitmix64, to_hash_ids, to_uniform
from pikv_env.traces.storage import write_file
from pikv_runtime.registry import UnknownNameError
from pikv_runtime.requests import chain_hashes


@pytest.fixture(scope="module")
def library() -> TraceLibrary:
    return synthetic_library(0, families=("facts", "dialogue", "code"), contents_per_family=8)


def changed(library: TraceLibrary, name: str, index: object, value: object) -> TraceLibrary:
    array = getattr(library, name).copy()
    array[index] = value
    return dataclasses.replace(library, **{name: array})


def same(a: TraceLibrary, b: TraceLibrary) -> bool:
    arrays = a.arrays()
    return arrays.keys() == b.arrays().keys() and all(np.array_equal(v, b.arrays()[k]) for k, v in arrays.items())


def test_synthetic_is_valid_and_deterministic(library: TraceLibrary) -> None:
    library.check()
    assert same(library, synthetic_library(0, families=("facts", "dialogue", "code"), contents_per_family=8))
    assert not same(library, synthetic_library(1, families=("facts", "dialogue", "code"), contents_per_family=8))
    assert library.prompt_tokens.min() >= 128 and library.prompt_tokens.max() <= 1200
    assert library.output_tokens.min() >= 16 and library.output_tokens.max() <= 160


def test_synthetic_looks_like_measured_traces() -> None:
    library = synthetic_library(3, contents_per_family=16)
    full = library.tags[:, :, :8] >= 0
    int8, int4 = (np.median(library.error[:, :, :8, k][full]) for k in (2, 3))
    assert 0.004 < int8 < 0.006 and 0.06 < int4 < 0.1
    assert np.all(library.error[..., 0] == 0)
    assert np.mean(library.mass[:, 0, :, 0]) > 2 * np.mean(library.mass[:, 0, :, 1]), "no sink"
    mass, score = library.mass[:, 0, 0, :8].ravel(), library.score[:, 0, 0, :8].ravel()
    assert np.corrcoef(np.log(mass + 1e-6), score)[0, 1] > 0.4, "scores do not follow the mass"


def test_shared_pages_agree_in_tag_and_error(library: TraceLibrary) -> None:
    rows = library.rows_of("facts")[:4]
    shared = int(library.shared_tokens[rows].min()) // library.page_tokens
    assert shared > 3 and len(set(library.group_of[rows].tolist())) == 1
    for row in rows[1:]:
        assert np.array_equal(library.tags[row, :, :shared], library.tags[rows[0], :, :shared])
        assert np.array_equal(library.error[row, :, :shared], library.error[rows[0], :, :shared])


def test_dialogue_turns_extend_each_other(library: TraceLibrary) -> None:
    assert library.token_ids is not None
    for row in library.rows_of("dialogue"):
        if library.turn_of[row]:
            shared = library.shared_tokens[row]
            assert shared == library.prompt_tokens[row - 1]
            assert np.array_equal(library.token_ids[row, :shared], library.token_ids[row - 1, :shared])


@pytest.mark.parametrize(("output", "expected"), [(1, 1), (32, 1), (33, 2), (64, 2), (160, 5)])
def test_num_observations(library: TraceLibrary, output: int, expected: int) -> None:
    outputs = np.full(len(library), output)
    short = dataclasses.replace(library, output_tokens=outputs)
    assert short.num_observations(0) == expected == len(range(0, output, library.observe_tokens))


def test_save_load_round_trip(library: TraceLibrary, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "library.safetensors"
    library.save(path)
    loaded = TraceLibrary.load(path)
    assert same(library, loaded)
    for name in ("families", "page_tokens", "observe_tokens", "layers", "experts", "model", "provenance"):
        assert getattr(loaded, name) == getattr(library, name)
    assert [p.name for p in path.parent.iterdir()] == ["library.safetensors"], "a temporary file was left"


def test_library_without_tokens_round_trips(library: TraceLibrary, tmp_path: Path) -> None:
    bare = dataclasses.replace(library, token_ids=None)
    bare.save(tmp_path / "bare.safetensors")
    assert TraceLibrary.load(tmp_path / "bare.safetensors").token_ids is None


def test_failed_save_keeps_the_old_file(library: TraceLibrary, tmp_path: Path) -> None:
    path = tmp_path / "library.safetensors"
    library.save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        dataclasses.replace(library, provenance={"no": object()}).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_file_is_refused(library: TraceLibrary, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "library.safetensors"
    library.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(TraceError, match="not a whole safetensors file"):
        TraceLibrary.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(TraceError, match="no such file"):
        TraceLibrary.load(tmp_path / "missing.safetensors")
    save_file({"weight": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(TraceError, match="format None"):
        TraceLibrary.load(tmp_path / "weights.safetensors")
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(TraceError, match="not a whole safetensors file"):
        TraceLibrary.load(tmp_path / "noise")


@pytest.mark.parametrize(
    ("name", "index", "value", "reason"),
    [
        ("mass", (0, 0, 0, 0), np.nan, "mass holds NaN"),
        ("gate", (0, 0, 0, 0), np.inf, "gate holds NaN or infinity"),
        ("error", (2, 0, 0, 1), -0.1, "error holds a negative"),
        ("error", (2, 0, 0, 0), 0.1, "native codec"),
        ("mass", (1, 0, 0, 0), 0.9, "content 1: mass .* sum to 1"),
        ("gate", (1, 0, 0), 0.5, "gate .* sum to 1"),
        ("tags", (3, 0, 0), 8, "content 3: tag out of range"),
        ("tags", (3, 0, 0), -1, "tag out of range"),
        ("family_of", 0, 3, "family_of out of range"),
        ("turn_of", 0, -1, "must not be negative"),
        ("turn_of", 0, 2, "without the turn before"),
        ("prompt_tokens", 0, 0, "at least 1"),
        ("prompt_tokens", 0, 10**6, "too few"),
        ("output_tokens", 0, 0, "at least 1"),
        ("shared_tokens", 0, 5000, "outside the prompt"),
        ("chain", (0, 2), 12345, "chain does not follow"),
        ("chain", (0, 2), 0, "chain hash missing"),
        ("chain", (0, -1), 7, "chain"),
        ("token_ids", (0, 3), -1, "negative token id"),
        ("token_ids", (0, 3), 200, "chain does not follow"),
    ],
)
def test_untrue_values_are_refused(
    library: TraceLibrary, tmp_path: Path, name: str, index: object, value: object, reason: str
) -> None:
    broken = changed(library, name, index, value)
    with pytest.raises(TraceError, match=reason):
        broken.check()
    broken.save(tmp_path / "broken.safetensors")
    with pytest.raises(TraceError, match=r"broken\.safetensors: .*" + reason):
        TraceLibrary.load(tmp_path / "broken.safetensors")


def test_mass_beyond_the_context_is_refused(library: TraceLibrary) -> None:
    mass = library.mass.copy()
    row = int(np.argmin(library.prompt_tokens))
    mass[row, 0, 0, 0] -= (moved := mass[row, 0, 0, 0] / 2)
    mass[row, 0, 0, -1] += moved
    with pytest.raises(TraceError, match="beyond the context"):
        dataclasses.replace(library, mass=mass).check()


def test_false_sharing_is_refused(library: TraceLibrary) -> None:
    with pytest.raises(TraceError, match="blocks differ"):
        changed(library, "group_of", library.rows_of("facts"), 0).check()


@pytest.mark.parametrize("name", ["mass", "tags", "error", "gate", "prompt_tokens"])
def test_shapes_are_checked_on_construction(library: TraceLibrary, name: str) -> None:
    with pytest.raises(TraceError, match=r"shape|axes"):
        dataclasses.replace(library, **{name: getattr(library, name)[:-1]})


def test_wrong_dtype_and_unknown_array_are_refused(library: TraceLibrary, tmp_path: Path) -> None:
    meta = {
        "families": library.families,
        "page_tokens": library.page_tokens,
        "observe_tokens": library.observe_tokens,
        "layers": library.layers,
        "experts": library.experts,
        "model": library.model,
        "provenance": {},
        "codecs": ["native", "bf16", "int8", "int4"],
    }
    path = tmp_path / "library.safetensors"
    cases = (
        ({"prompt_tokens": library.prompt_tokens.astype(np.float32)}, {}, "prompt_tokens is float32"),
        ({"masses": library.mass}, {}, "did you mean 'mass'"),
        ({}, {"codecs": ["native", "int2"]}, "codecs differ"),
        ({}, {"page_tokens": 0}, "page_tokens=0"),
        ({}, {"colour": "red"}, "colour"),
    )
    for arrays, entries, reason in cases:
        write_file(path, {**library.arrays(), **arrays}, {**meta, **entries})
        with pytest.raises(TraceError, match=reason):
            TraceLibrary.load(path)
    write_file(path, library.arrays(), json.loads(json.dumps(meta)))
    assert same(TraceLibrary.load(path), library)


def test_subset(library: TraceLibrary) -> None:
    part = library.subset(["code", "facts"]).check()
    assert part.families == ("code", "facts") and len(part) == 16
    rows = library.rows_of("code")
    assert np.array_equal(part.mass[part.rows_of("code")], library.mass[rows])
    assert len(library.subset([])) == 0
    with pytest.raises(UnknownNameError, match="did you mean 'code'"):
        library.subset(["cod"])


def test_merge_pads_and_keeps_groups_apart(library: TraceLibrary) -> None:
    small = synthetic_library(
        7, families=("copy", "facts"), contents_per_family=5, prompt_range=(20, 60), output_range=(2, 30)
    )
    small = dataclasses.replace(small, model=library.model)
    merged = TraceLibrary.merge([library, small]).check()
    assert merged.families == ("facts", "dialogue", "code", "copy") and len(merged) == len(library) + 10
    assert merged.mass.shape[1:] == library.mass.shape[1:]
    old = merged.rows_of("facts")
    assert len(old) == 8 + 5
    assert not set(merged.group_of[: len(library)]) & set(merged.group_of[len(library) :])
    at, pages = len(library), small.mass.shape[3]
    assert np.array_equal(merged.mass[at:, : small.mass.shape[1], :, :pages], small.mass)
    assert np.all(merged.tags[at:, :, pages:] == -1) and np.all(merged.mass[at:, :, :, pages:] == 0)


def test_merge_refuses_what_does_not_fit(library: TraceLibrary) -> None:
    with pytest.raises(ValueError, match="0 libraries"):
        TraceLibrary.merge([])
    with pytest.raises(TraceError, match="differ in model"):
        TraceLibrary.merge([library, dataclasses.replace(library, model="other")])
    with pytest.raises(TraceError, match="token_ids"):
        TraceLibrary.merge([library, dataclasses.replace(library, token_ids=None)])


def test_arrays_are_read_only(library: TraceLibrary) -> None:
    for array in library.arrays().values():
        assert not array.flags.writeable


def test_chain_is_the_runtime_chain(library: TraceLibrary) -> None:
    assert library.token_ids is not None
    tokens = library.token_ids[5, : library.total_tokens[5]]
    assert np.array_equal(library.chain[5, : library.num_blocks[5]], chain_hashes(tokens, library.page_tokens))


def test_splitmix_reference_values() -> None:
    # First outputs of splitmix64 seeded with 0, as published with the algorithm.
    assert int(splitmix64(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF
    assert int(splitmix64(np.array([0x9E3779B97F4A7C15], np.uint64))[0]) == 0x6E789E6AA1B965F4


def test_mix_depends_on_order_and_spreads() -> None:
    assert int(mix(1, 2)) != int(mix(2, 1))
    ids = to_hash_ids(mix(np.arange(1000)[:, None], np.arange(100)))
    assert ids.min() > 0 and len(np.unique(ids)) == 100_000
    u = to_uniform(mix(np.arange(100_000)))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.005
