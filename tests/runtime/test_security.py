"""Nothing that a rank, a file or a client sends can become code: the source has no way to unpickle or evaluate it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "runtime").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "copyreg"}
CALLS = {
    "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "send_object_list",
    "recv_object_list", "_object_to_tensor", "_tensor_to_object",  # torch.distributed pickles these
    "Queue", "SimpleQueue", "JoinableQueue", "Pipe", "Manager", "Listener", "Client",  # so does multiprocessing
    "eval", "exec", "unsafe_load", "full_load",
}  # fmt: skip
NEEDS = {("torch", "load"): ("weights_only", True), ("np", "load"): ("allow_pickle", False)}
NEEDS |= {("np", name): ("allow_pickle", False) for name in ("save", "savez", "savez_compressed")}


def offences(source: str) -> list[str]:
    """Lines of a program that could run what they read, and why."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: imports {n}" for n in names if n.partition(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            found += _call(node)
    return found


def _call(node: ast.Call) -> list[str]:
    owner, name = "", getattr(node.func, "id", "")
    if isinstance(node.func, ast.Attribute):
        owner, name = getattr(node.func.value, "id", "?"), node.func.attr
        if name in ("eval", "exec") and owner != "builtins":
            return []  # a module's evaluation mode
    given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
    if name in CALLS:
        return [f"{node.lineno}: calls {name}"]
    if given.get("shell"):
        return [f"{node.lineno}: runs a shell"]
    argument, wanted = NEEDS.get((owner, name), ("", None))
    return (
        [f"{node.lineno}: {owner}.{name} without {argument}={wanted}"]
        if argument and given.get(argument) != wanted
        else []
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_runtime_never_unpickles_or_evaluates(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import pickle", "imports pickle"),
        ("from cloudpickle import dumps", "imports cloudpickle"),
        ("dist.broadcast_object_list([1])", "calls broadcast_object_list"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("np.load(path, allow_pickle=True)", "np.load without allow_pickle=False"),
        ("eval(text)", "calls eval"),
        ("subprocess.run(text, shell=True)", "runs a shell"),
        ("context.Queue()", "calls Queue"),
    ],
)
def test_the_check_finds_what_it_looks_for(code: str, reason: str) -> None:
    assert [offence.partition(": ")[2] for offence in offences(code)] == [reason]


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 100 and offences("model.eval()\ntorch.load(p, weights_only=True)") == []
