"""`pikv workloads` and `pikv convert`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pikv_agents import cli
from pikv_agents.report.workload_figure import over_time
from pikv_env.builtin import resolve_library
from pikv_env.traces import synthetic_library
from pikv_env.workloads import FAMILIES, describe, make_workload, read_mooncake


def ran(tmp_path: Path, *arguments: str) -> dict[str, object]:
    out = tmp_path / "out.json"
    assert cli.main([*arguments, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_list_tells_everything_of_every_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ran(tmp_path, "workloads")["families"]
    assert {row["id"] for row in rows} == set(FAMILIES) and len(rows) >= 20  # type: ignore[union-attr]
    for row in rows:  # type: ignore[attr-defined]
        told = ("split", "description", "contents", "arrivals", "sharing", "source", "licence", "seed")
        assert all(row[key] for key in told)
        assert row["expected"], f"{row['id']}: no expected statistics"
    assert "replay-agent-loop" in capsys.readouterr().out


def test_show_draws_by_the_seed_and_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "figure.png"
    given = ("workloads", "show", "chat-swing", "--horizon-s", "300")
    first = ran(tmp_path, *given, "--figure", str(figure))
    text = capsys.readouterr().out
    assert "starts diurnal (period_s 600.0" in text and "arrivals over time" in text
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert first == ran(tmp_path, *given) and first["statistics"]["requests"] > 50  # type: ignore[index]
    assert ran(tmp_path, *given, "--seed", "1")["statistics"] != first["statistics"]
    priced = ("--profile", "h100-nvlink8", "--geometry", "qwen3-30b-a3b", "--ranks", "2")
    rates = [
        ran(tmp_path, *given, *priced, "--token-scale", s)["statistics"]["rate_per_s"]  # type: ignore[index]
        for s in ("1", "8")
    ]
    assert rates[0] > 4 * rates[1], "a request of eight times the tokens takes about eight times as long"


def test_what_is_drawn_over_time_adds_up() -> None:
    library = resolve_library()
    workload = make_workload("code-bursty", library, 0, 600.0, 0.3, lambda p, o: 0.2)
    edges, rate, share = over_time(workload, library.page_tokens, 20)
    assert (rate * (edges[1] - edges[0])).sum() == pytest.approx(len(workload.requests))
    assert share[0] < 0.5 < share[-5:].max() <= 1.0
    once = make_workload("facts-unique", library, 0, 600.0, 0.3, lambda p, o: 0.2)
    assert describe(once)["prefix_hit_rate"] == 0 == over_time(once, library.page_tokens, 5)[2].max()


def test_generate_and_convert_write_traces(tmp_path: Path) -> None:
    trace, cut = tmp_path / "trace.jsonl.gz", tmp_path / "cut.jsonl"
    made = ran(tmp_path, "workloads", "generate", "agent-loop", "--seed", "2", "--out", str(trace))
    assert made["statistics"]["requests"] == len(read_mooncake(trace, 2048))  # type: ignore[index]
    source = tmp_path / "azure.csv"
    source.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5,600,4\n2023-11-16 18:15:49,700,4\n"
    )
    found = ran(tmp_path, "convert", str(source), "--from", "azure", "--out", str(cut), "--start-s", "1")
    assert found["format"] == "azure" and found["options"]["start_s"] == 1.0  # type: ignore[index]
    assert [(r.timestamp_ms, r.input_length) for r in read_mooncake(cut, 512)] == [(1500, 700)]
    text = source.read_text()
    assert cli.main(["convert", str(source), "--from", "azure", "--out", str(source)]) == 2
    assert source.read_text() == text, "a source is never overwritten"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["workloads", "show"], "show needs a name"),
        (["workloads", "show", "flash-crow"], "did you mean 'flash-crowd'"),
        (["workloads", "generate", "conversations", "--out", "x"], "did you mean 'conversation'"),
        (["workloads", "generate", "conversation"], "generate needs a file"),
        (["convert", "missing.csv", "--from", "azure", "--out", "x.jsonl"], "missing.csv: cannot be read"),
        (["convert", "missing.csv", "--from", "azur", "--out", "x.jsonl"], "azure"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


OWN = """
id = "gateway"
phases = [{kinds = {code = 1.0}}]
arrivals = {process = "gamma", cv = 2.0}
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    before = dict(FAMILIES._entries)
    path = tmp_path / "gateway.toml"
    path.write_text(OWN)
    yield path
    FAMILIES._entries.clear()
    FAMILIES._entries.update(before)


def test_a_family_of_ones_own_is_shown_and_studied(own: Path, tmp_path: Path) -> None:
    told = ran(tmp_path, "workloads", "show", str(own), "--horizon-s", "300")
    assert told["id"] == "gateway" and told["statistics"]["requests"] > 50  # type: ignore[index]
    library = tmp_path / "traces.safetensors"
    synthetic_library(0, ("facts", "code"), contents_per_family=4, prompt_range=(64, 320), output_range=(16, 64)).save(
        library
    )
    given = ("--families", str(own), "--library", str(library), "--quick", "--horizon-s", "40", "--ranks", "1")
    found = ran(tmp_path, "headroom", *given, "--pressure", "0.05", "100")
    rows = found["rows"]
    assert [(r["family"], r["split"], r["reached"]) for r in rows] == [  # type: ignore[attr-defined]
        ("gateway", "train", True),
        ("gateway", "train", False),
    ]
    assert found["suite"] == "laptop" and found["meta"]["env"]["ranks"] == 1  # type: ignore[index]


def test_what_cannot_be_a_family_is_one_line(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.write_text(OWN.replace("cv = 2.0", "cv = 0.0"))
    for command in (("headroom", "--families"), ("evaluate", "--families"), ("run", "--family")):
        assert cli.main([*command, str(own)]) == 2
        assert capsys.readouterr().err.startswith(f"pikv: {own}: arrivals: cv=0.0")
    assert cli.main(["headroom", "--suite", "lapto"]) == 2
    assert "unknown suite 'lapto': did you mean 'laptop'" in capsys.readouterr().err
    assert cli.main(["run", "--suite", "serving"]) == 2
    assert "suite='serving' prices qwen3-30b-a3b" in capsys.readouterr().err


def test_suites_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {one["id"]: one for one in ran(tmp_path, "workloads", "suites")["suites"]}  # type: ignore[attr-defined]
    assert told["serving"]["pressures"] == [0.5, 1.0, 2.0, 4.0] and told["serving-host"]["host"] == 4.0
    assert "laptop" in capsys.readouterr().out


def test_flags_change_a_suite_and_quick_says_what_it_leaves_out() -> None:
    given = ["--suite", "serving", "--quick", "--slots", "40", "--host", "2"]
    command = cli.parse("headroom", given)
    config = command.config()  # type: ignore[attr-defined]
    assert (config.profile, config.runtime.slots, config.host, config.horizon_s) == ("h100-nvlink8", 40, 2.0, 600.0)
    assert command.spec().pressures == (2.0,)  # type: ignore[attr-defined]
    assert "quick: not the pressures 0.5, 1, 4" in command.announce()  # type: ignore[attr-defined]
    whole = cli.parse("evaluate", ["--suite", "serving"])
    assert whole.spec().pressures == (0.5, 1.0, 2.0, 4.0) and "quick" not in whole.announce()  # type: ignore[attr-defined]
    asked = cli.parse("evaluate", ["--quick", "--pressure", "1", "3", "--horizon-s", "90"])
    assert (asked.spec().pressures, asked.spec().horizon_s) == ((1.0, 3.0), 90.0)  # type: ignore[attr-defined]
