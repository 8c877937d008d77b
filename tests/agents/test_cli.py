"""The command: quick help, one-line errors, exit codes, JSON results; and `pikv compare` on local runs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time

import pytest
from synthetic_summary import make_summary

from pikv_agents import cli
from pikv_agents.commands.base import Command
from pikv_agents.comparison import compare
from pikv_agents.tracking import RunLogger, write_json


def write_run(folder, group, final, evaluation=None):
    with RunLogger(folder, mode="disabled", group=group) as logger:
        for step in range(0, 2001, 100):
            logger.log(step, {"charts/episode_return": final - 1 + min(1, step / 1000)})
    if evaluation is not None:
        write_json(folder / "evaluation.json", evaluation)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        write_run(root / f"ppo-{seed}", "ppo", -1.5 - 0.1 * seed, make_summary(seed=seed)["evaluation"])
    write_run(root / "sac-0", "sac", -2.5)
    return root


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_is_a_documented_frozen_dataclass(name, capsys):
    kind = cli.load_command(name)
    assert issubclass(kind, Command) and kind.__dataclass_params__.frozen
    assert {"json"} <= {field.name for field in dataclasses.fields(kind)}
    with pytest.raises(SystemExit) as stop:
        cli.run([name, "--help"])
    assert stop.value.code == 0
    assert kind.__doc__.splitlines()[0] in capsys.readouterr().out


def test_help_is_quick_and_imports_nothing_heavy():
    heavy = ["torch", "numpy", "scipy", "wandb", "matplotlib", "stable_baselines3", "tyro"]
    code = "import sys; from pikv_agents.cli import main; main(['--help']);"
    code += f"print(set({heavy}) & set(sys.modules))"
    spans = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        spans.append(time.perf_counter() - start)
    assert done.stdout.splitlines()[-1] == "set()"
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert min(spans) < 1.5  # alone it takes 0.2 s; the bound leaves room for a busy machine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compar"], "unknown command 'compar': did you mean 'compare'?"),
        (["compare"], "no paths given"),
        (["compare", "nowhere"], "nowhere: no such file"),
        (
            ["compare", "x", "--unit", "day"],
            "invalid choice 'day' for argument '--unit'. Expected one of ('auto'",
        ),
        (["compare", "x", "--unitt", "run"], "Unrecognized options: --unitt"),
    ],
)
def test_errors_are_one_line_and_exit_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("pikv: ") and message in error
    assert error.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("PIKV_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["compare", "nowhere"])


def test_ctrl_c_is_130(monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.load_command("compare"), "run", interrupted)
    assert cli.main(["compare", "x"]) == 130
    assert capsys.readouterr().err == "pikv: interrupted\n"


def test_multi_line_errors_are_joined():
    assert cli._one_line(ValueError("a\n  b\nc")) == "a b c"
    assert cli._one_line(PermissionError(13, "Permission denied", "/x")) == "/x: permission denied"


def test_compare_writes_tables_json_and_figure(runs, tmp_path, capsys):
    out, figure = tmp_path / "out.json", tmp_path / "compare.png"
    assert cli.main(["compare", str(runs), "--json", str(out), "--figure", str(figure)]) == 0
    printed = capsys.readouterr().out
    assert "learned" in printed and "ppo" in printed and "sac" in printed
    found = json.loads(out.read_text())
    evaluation, groups = found["evaluation"], found["training"]["groups"]
    assert evaluation["unit"] == "run" and evaluation["baseline"] == "lazy"
    assert evaluation["families"] == ["needle", "mooncake-chat", "regime-shift", "prose"]
    learned = evaluation["differences"]["learned"]
    assert learned["ci95"][1] < 0 and learned["probability_of_improvement"] > 0.5
    assert groups["ppo"]["iqm"] == pytest.approx(-1.6) and groups["ppo"]["ci95"][0] < -1.6
    assert groups["sac"]["final"] == [-2.5] and groups["sac"]["ci95"] is None
    assert figure.stat().st_size > 10_000


def test_compare_one_file_uses_workload_seeds(runs):
    path = runs / "ppo-0" / "evaluation.json"
    evaluation = compare([path], baseline="h2o", split="all")["evaluation"]
    given = json.loads(path.read_text())["families"]["needle"]["policies"]
    assert evaluation["unit"] == "workload" and len(evaluation["families"]) == 7
    difference = evaluation["differences"]["learned"]["families"]["needle"]["difference"]
    expected = sum(given["learned"]["scores"]) - sum(given["h2o"]["scores"])
    assert difference == pytest.approx(expected / 8)


def test_compare_pairs_policies_of_different_files_by_seed(runs, tmp_path):
    evaluation = json.loads((runs / "ppo-0" / "evaluation.json").read_text())
    for name, kept in (("a", "learned"), ("b", "lazy")):
        part = evaluation | {"iqm": {kept: evaluation["iqm"][kept]}, "families": {}}
        for family, block in evaluation["families"].items():
            part["families"][family] = block | {"policies": {kept: block["policies"][kept]}}
        write_json(tmp_path / f"evaluation-{name}.json", part)
    whole = compare([runs / "ppo-0" / "evaluation.json"])["evaluation"]["differences"]["learned"]
    assert compare([tmp_path])["evaluation"]["differences"]["learned"] == whole


def test_one_score_gives_no_interval(runs):
    found = compare([runs / "ppo-0" / "evaluation.json"], unit="run")["evaluation"]
    assert found["policies"]["learned"]["ci95"] is None
    assert found["differences"]["learned"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "lru2"}, "baseline 'lru2' is not evaluated: allowed arc"),
        ({"metric": "cost/J"}, r"no metric 'cost/J': allowed charts/episode_return"),
    ],
)
def test_compare_names_what_is_allowed(runs, options, message):
    with pytest.raises(ValueError, match=message):
        compare([runs], **options)


def test_compare_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(ValueError, match="holds neither metrics"):
        compare([tmp_path])
    (tmp_path / "evaluation.json").write_text('{"lambda1": 1}')
    with pytest.raises(ValueError, match=r"evaluation\.json: evaluation, lambda2: Field required"):
        compare([tmp_path])
