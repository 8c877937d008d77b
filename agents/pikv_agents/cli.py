"""The `pikv` command: a table of subcommands, each a frozen dataclass in its own module.

To add a command: write `commands/<name>.py` with a `Command` subclass, and add one line to `COMMANDS`. Only
the command that is asked for is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pikv_agents.commands.base import Command

# name -> (module:class, what it does in one line), in the order of `pikv --help`
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("pikv_agents.commands.quickstart:QuickstartCommand", "the whole loop once, small but real"),
    "record": ("pikv_agents.commands.record:Record", "serve contents exactly and keep their attention traces"),
    "coverage": ("pikv_agents.commands.coverage:Coverage", "attention mass that each router's read set captures"),
    "headroom": ("pikv_agents.commands.headroom:Headroom", "what there is to gain, before any learning"),
    "fit-reuse": ("pikv_agents.commands.fit_reuse:FitReuse", "fit the learned order of cached blocks, `lrb`"),
    "oracle": ("pikv_agents.commands.oracle:Oracle", "bounds on what clairvoyant decisions could reach"),
    "train": ("pikv_agents.commands.train:Train", "learn a policy on recorded traces"),
    "evaluate": ("pikv_agents.commands.evaluate:Evaluate", "policies and their rivals on held-out workloads"),
    "export": ("pikv_agents.commands.export:Export", "a training run as a policy bundle"),
    "env": ("pikv_agents.commands.env:Env", "an environment's observation, action, reward and cost terms"),
    "policies": ("pikv_agents.commands.policies:Policies", "list, show and verify policy bundles"),
    "run": ("pikv_agents.commands.run:Run", "serve a workload for real, under one policy or several"),
    "parity": ("pikv_agents.commands.parity:Parity", "the trace environment against the live runtime"),
    "bench": (
        "pikv_agents.commands.bench:Bench",
        "how fast environment, learning and decisions are here",
    ),
    "calibrate": ("pikv_agents.commands.calibrate:Calibrate", "measure this machine's prices"),
    "workloads": ("pikv_agents.commands.workloads:Workloads", "list workload families, draw one, generate traces"),
    "convert": ("pikv_agents.commands.convert:Convert", "a trace of another format in the Mooncake line format"),
    "compare": ("pikv_agents.commands.compare:Compare", "runs and evaluations side by side, with intervals"),
}
DEBUG = "PIKV_DEBUG"


class UsageError(ValueError):
    """A command line that cannot be parsed."""


def load_command(name: str) -> type[Command]:
    """Import the class of a command; an unknown name gets the closest one."""
    if name not in COMMANDS:
        from pikv_runtime.registry import UnknownNameError

        raise UnknownNameError("command", name, list(COMMANDS))
    module, _, attribute = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), attribute)


def print_help() -> None:
    """The list of commands."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print("[bold]usage:[/] pikv [cyan]COMMAND[/] [OPTIONS]\n", soft_wrap=True)
    console.print("Learns and serves policies for the KV cache of Mixture-of-Experts models.\n", soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 2))
    for name, (_, line) in COMMANDS.items():
        table.add_row(f"[cyan]{name}[/]", line)
    console.print(table)
    console.print("\n[dim]pikv COMMAND --help lists a command's options; every command takes --json FILE.[/]")


def parse(name: str, arguments: Sequence[str]) -> Command:
    """The command with its options; raises UsageError, in one line, where tyro would print a box."""
    import tyro

    kind, stderr = load_command(name), io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(
                kind,
                prog=f"pikv {name}",
                description=inspect.getdoc(kind),
                args=list(arguments),
                config=(tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{_unboxed(stderr.getvalue())} (see pikv {name} --help)") from None


def _unboxed(text: str) -> str:
    """The message in tyro's box, up to its first rule, on one line."""
    rows = re.findall(r"│ (.*?) *│", re.sub(r"\x1b\[[0-9;]*m", "", text))
    message = []
    for row in rows:
        if row.startswith("─"):
            break
        message.append(row.strip())
    return " ".join(message) or " ".join(text.split())


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return " ".join(str(error).split()) or type(error).__name__


def run(arguments: Sequence[str]) -> None:
    """Parse and run one command; its result goes to `--json` if that was given."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return print_help()
    if arguments[0] == "--version":
        from pikv_runtime import __version__

        return print(f"pikv {__version__}")
    command = parse(arguments[0], arguments[1:])
    result = command.run()
    if command.json is not None:
        from pikv_agents.tracking.metrics import write_json

        write_json(command.json, result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0; 2 after a one-line error; 130 after Ctrl-C. `PIKV_DEBUG=1` shows the traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = os.environ.get(DEBUG, "0") not in ("", "0")
    try:
        run(arguments)
    except KeyboardInterrupt:
        if debug:
            raise
        print("pikv: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if debug or not _explained(error):
            raise
        print(f"pikv: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _explained(error: Exception) -> bool:
    """Whether the error's text tells a user what is wrong; another RuntimeError is a defect and keeps its traceback."""
    from pikv_runtime.transport import RankFailedError

    return isinstance(error, ValueError | OSError | RankFailedError)


def entry() -> NoReturn:
    """`python -m pikv_agents`."""
    sys.exit(main())
