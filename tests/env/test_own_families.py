"""Families of one's own from files: what is read, what is refused, and that nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pikv_env.traces import synthetic_library
from pikv_env.workloads import FAMILIES, Family, Growth, Phase, Popularity, Sessions, Tenants, Trace, make_workload
from pikv_env.workloads.arrivals import Diurnal, Gamma
from pikv_env.workloads.mooncake import MooncakeError
from pikv_env.workloads.own import FamilyFileError, family_of_trace, load_family, named_families
from pikv_env.workloads.replay import trace_path
from pikv_runtime.registry import UnknownNameError

GATEWAY = """
id = "gateway"
batch_share = 0.5
phases = [{kinds = {code = 1, facts = 0.5}}, {kinds = {prose = 1.0}, rate = 2}]
arrivals = {process = "gamma", cv = 2.0}
popularity = {zipf = 1.1, instances = 64, lifetime_s = 300}
classes = [
  {name = "chat", weight = 1.0, slo_ttft_s = 1.0, slo_tpot_s = 0.05, fidelity_weight = 1.0},
  {name = "night", weight = 0.1, slo_ttft_s = 60.0, slo_tpot_s = 1.0, fidelity_weight = 0.2},
]
"""


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    before = dict(FAMILIES._entries)
    yield
    FAMILIES._entries.clear()
    FAMILIES._entries.update(before)


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_toml_file_is_the_family_that_it_describes(tmp_path: Path) -> None:
    path = written(tmp_path, GATEWAY)
    family = load_family(path)
    assert family.phases == (Phase({"code": 1.0, "facts": 0.5}), Phase({"prose": 1.0}, rate=2.0))
    assert family.arrivals == Gamma(cv=2.0) and family.popularity == Popularity(1.1, 64, 300.0)
    assert (family.id, family.split, family.batch_share) == ("gateway", "train", 0.5)
    assert family.classes[1].name == "night" and family.classes[1].slo_ttft_s == 60.0
    assert named_families([str(path), "facts-poisson", str(path)]) == ("gateway", "facts-poisson")
    workload = make_workload("gateway", synthetic_library(0, contents_per_family=8), 0, 300.0, 0.3, lambda p, o: 0.2)
    assert len(workload.requests) > 100


def test_a_json_file_may_say_all_that_a_family_can(tmp_path: Path) -> None:
    told = {
        "id": "agents", "split": "test", "description": "ours", "sharing": "growing", "seed": 7, "licence": "private",
        "phases": [{"kinds": {"code": 1.0}}],
        "arrivals": {"process": "sessions", "max_turns": 9, "starts": {"process": "diurnal", "period_s": 600.0}},
        "tenants": {"count": 3, "prefix_tokens": [32, 64]}, "growth": {"median_tokens": 10},
        "expected": {"batch_share": [0.1, 0.3]},
    }  # fmt: skip
    family = load_family(written(tmp_path, json.dumps(told), "agents.json"))
    assert family == Family(
        id="agents", split="test", description="ours", sharing="growing", seed=7, licence="private",
        phases=(Phase({"code": 1.0}),), arrivals=Sessions(max_turns=9, starts=Diurnal(period_s=600.0)),
        tenants=Tenants(count=3, prefix_tokens=(32, 64)), growth=Growth(median_tokens=10.0),
        expected={"batch_share": (0.1, 0.3)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("id = ", "idd = "), "unknown field 'idd': did you mean 'id'"),
        (('id = "gateway"', ""), "the field 'id' is missing"),
        (('id = "gateway"', "id = 5"), "id=5: must be text"),
        (('id = "gateway"', 'id = "facts-poisson"'), "is the name of another family"),
        (('"gamma"', '"gama"'), "arrivals: unknown process 'gama': did you mean 'gamma'"),
        (('process = "gamma", ', ""), "arrivals: unknown process 'None'"),
        (("cv = 2.0", "cv = nan"), "arrivals: cv=nan: must be finite"),
        (("cv = 2.0", 'cv = "2"'), "arrivals: cv='2': must be a number"),
        (("cv = 2.0", "cv = -2.0"), "arrivals: "),
        (("cv = 2.0", "vc = 2.0"), "arrivals: unknown field 'vc': did you mean 'cv'"),
        (("code = 1", "cod = 1"), "phases: unknown content kind 'cod': did you mean 'code'"),
        (("code = 1", "code = true"), "phases[0]: kinds.code=True: must be a number"),
        (("code = 1,", "code = 0,"), "phases[0]: phase"),
        (("phases = [{kinds = {code = 1, facts = 0.5}}, {kinds = {prose = 1.0}, rate = 2}]", "phases = 3"),
         "phases: a list of tables is wanted, not int"),
        (("instances = 64", "instances = 6.4"), "popularity: instances=6.4: must be a whole number"),
        (("instances = 64", "instances = 0"), "popularity: zipf=1.1, instances=0"),
        (("batch_share = 0.5", "batch_share = 1.5"), "batch_share=1.5, allowed 0..1"),
        (("batch_share = 0.5", 'split = "tset"'), "unknown split 'tset': did you mean 'test'"),
        (("batch_share = 0.5", 'sharing = "growing"'), "sharing 'growing' and the arrivals `Sessions` go together"),
        (("batch_share = 0.5", "seed = -3"), "seed=-3"),
        (('{name = "night"', '{name = "night", x = 1'), "classes[1]: unknown field 'x'"),
        (("[{kinds", "[{kinds = {"), "cannot be read as TOML"),
    ],
)  # fmt: skip
def test_damage_is_refused_with_file_field_and_reason(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in GATEWAY
    path = written(tmp_path, GATEWAY.replace(*change))
    with pytest.raises(ValueError) as error:
        named_families([str(path)])
    assert isinstance(error.value, FamilyFileError) and str(error.value).startswith(f"{path}: ")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("facts-poison", "unknown family 'facts-poison': did you mean 'facts-poisson'"),
        ("nowhere.toml", "nowhere.toml: cannot be read as TOML: no such file"),
        ("trace:nowhere.jsonl", "nowhere.jsonl: cannot be read"),
        ("mine.py", "unknown family 'mine.py'"),
    ],
)
def test_what_is_not_there_is_refused(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named_families([entry])


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    code = f"__import__('pathlib').Path({str(spoilt)!r}).touch()"
    for name, text in (("a.json", json.dumps(code)), ("b.toml", f"id = {code}"), ("c.json", code)):
        with pytest.raises(FamilyFileError):
            load_family(written(tmp_path, text, name))
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UnknownNameError):
        named_families([str(tmp_path / "mine.py")])
    assert not spoilt.exists()


def test_a_trace_alone_is_a_training_family(tmp_path: Path) -> None:
    path = tmp_path / "tuesday.jsonl.gz"
    path.write_bytes(trace_path("builtin:agent-loop").read_bytes())
    (name,) = named_families([f"trace:{path}"])
    family = FAMILIES[name]
    assert (family.id, family.split, family.sharing) == ("tuesday", "train", "trace")
    trained = {kind for one in FAMILIES for kind in FAMILIES[one].kinds if FAMILIES[one].split == "train"}
    assert set(family.kinds) <= trained, "its contents are no test's"
    trace = family.arrivals
    assert isinstance(trace, Trace) and trace.block_tokens == 2048 and trace.token_scale == 256.0
    assert family_of_trace(trace_path("builtin:conversation")).arrivals.block_tokens == 512  # type: ignore[attr-defined]


def test_a_trace_whose_ids_are_no_blocks_is_refused(tmp_path: Path) -> None:
    lines = [{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": list(range(n))} for n in (2, 9)]
    path = written(tmp_path, "\n".join(map(json.dumps, lines)), "odd.jsonl")
    with pytest.raises(MooncakeError, match="no block size fits"):
        family_of_trace(path)


def test_a_file_names_its_trace_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "day.jsonl.gz").write_bytes(trace_path("builtin:conversation").read_bytes())
    text = 'id = "day"\nsharing = "trace"\nphases = [{kinds = {code = 1.0}}]\n'
    path = written(tmp_path, text + 'arrivals = {process = "trace", path = "day.jsonl.gz", token_scale = 32}')
    assert len(load_family(path).arrivals.records()) > 100  # type: ignore[attr-defined]
    with pytest.raises(MooncakeError, match=r"gone\.jsonl: cannot be read"):
        load_family(written(tmp_path, text + 'arrivals = {process = "trace", path = "gone.jsonl"}'))
