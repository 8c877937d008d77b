"""The process behind `WorkerPolicy`: makes the class that it is told, then answers questions until its input ends."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import BinaryIO

from pikv_runtime.contract import Control
from pikv_runtime.policy.base import Policy
from pikv_runtime.policy.frames import ERROR, HELLO, MOST_TEXT, Frame, pack, pack_control, unpack_telemetry


def load_class(place: str, name: str) -> type[Policy]:
    """The class `name` of a file ending in .py, or of a module; raises what importing it raises."""
    if place.endswith(".py"):
        found = importlib.util.spec_from_file_location(Path(place).stem, place)
        if found is None or found.loader is None:
            raise ImportError(f"{place} is no Python file")
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module
        sys.path.insert(0, str(Path(place).parent))
        found.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    kind: type[Policy] = getattr(module, name)
    return kind


def _answer(policy: Policy, frame: Frame) -> bytes:
    try:
        told = unpack_telemetry(frame)
        out = Control.neutral(len(told.groups))
        answer = policy.decide(told, out)
        return pack_control(frame.number, out if answer is None else answer)
    except Exception as error:
        return pack(ERROR, frame.number, 0, _reason(error))


def _reason(error: Exception) -> bytes:
    return f"{type(error).__name__}: {error}"[:MOST_TEXT].encode()


def _serve(policy: Policy, questions: BinaryIO, answers: BinaryIO) -> None:
    frame = Frame()
    while data := os.read(questions.fileno(), 1 << 16):
        frame.add(data)
        if frame.whole:
            answers.write(_answer(policy, frame))
            frame.whole = False


def main(place: str, name: str) -> int:
    """Say hello or what is wrong, then serve."""
    # What the class prints must not get between answers: from here on, standard output is standard error.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        policy = load_class(place, name)()
        if not callable(getattr(policy, "decide", None)):
            raise TypeError(f"{name} has no method decide")
    except Exception as error:
        answers.write(pack(ERROR, 0, 0, _reason(error)))
        return 1
    answers.write(pack(HELLO))
    _serve(policy, sys.stdin.buffer, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
