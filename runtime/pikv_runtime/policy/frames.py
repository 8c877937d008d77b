"""What travels between the runtime and a policy in a worker: frames of a fixed header and plain float32."""

from __future__ import annotations

import struct

import numpy as np

from pikv_runtime.contract import GLOBAL_CONTROLS, GLOBAL_FEATURES, GROUP_CONTROLS, GROUP_FEATURES, Control, Telemetry

HEADER = struct.Struct("<4sIII")
"""Kind, number of the question, groups, bytes that follow."""
HELLO, TOLD, CONTROL, ERROR = b"helo", b"told", b"ctrl", b"fail"
MOST_BYTES = 1 << 24
MOST_TEXT = 400


class FrameError(ValueError):
    """Bytes that are no frame."""


class Frame:
    """One frame, put together from what a pipe delivers."""

    def __init__(self) -> None:
        self.whole = False
        self.kind, self.number, self.groups = b"", 0, 0
        self.body = bytearray()
        self._pending = bytearray()

    def add(self, data: bytes) -> None:
        """Take bytes in; `whole` says whether kind, number, groups and body are a frame's now.

        Raises:
            FrameError: They are no frame, or more than one.
        """
        self._pending += data
        if len(self._pending) < HEADER.size:
            return
        kind, number, groups, length = HEADER.unpack_from(self._pending)
        if kind not in (HELLO, TOLD, CONTROL, ERROR) or length > MOST_BYTES:
            raise FrameError(f"it wrote {bytes(self._pending[:16])!r}, which is no frame")
        if len(self._pending) < HEADER.size + length:
            return
        if len(self._pending) > HEADER.size + length:
            raise FrameError("it wrote more than one answer to a question")
        self.kind, self.number, self.groups, self.whole = kind, number, groups, True
        self.body, self._pending = self._pending[HEADER.size :], bytearray()

    def text(self) -> str:
        """The body as one line."""
        return " ".join(bytes(self.body).decode("utf-8", "replace").split())


def pack(kind: bytes, number: int = 0, groups: int = 0, body: bytes = b"") -> bytes:
    """The bytes of a frame."""
    return HEADER.pack(kind, number & 0xFFFFFFFF, groups, len(body)) + body


def pack_telemetry(number: int, telemetry: Telemetry) -> bytes:
    """A question."""
    body = telemetry.groups.astype("<f4").tobytes() + telemetry.globals.astype("<f4").tobytes()
    return pack(TOLD, number, len(telemetry.groups), body)


def unpack_telemetry(frame: Frame) -> Telemetry:
    """Inverse of `pack_telemetry`."""
    values = np.frombuffer(frame.body, "<f4").astype(np.float32)
    split = frame.groups * len(GROUP_FEATURES)
    if len(values) != split + len(GLOBAL_FEATURES):
        raise FrameError(f"telemetry of {frame.groups} groups has {len(values)} numbers")
    return Telemetry(values[:split].reshape(frame.groups, -1), values[split:])


def pack_control(number: int, control: Control) -> bytes:
    """An answer."""
    body = control.groups.astype("<f4").tobytes() + control.globals.astype("<f4").tobytes()
    return pack(CONTROL, number, len(control.groups), body)


def unpack_control(frame: Frame, out: Control) -> None:
    """Inverse of `pack_control`, into `out`; raises FrameError where the sizes differ."""
    values = np.frombuffer(frame.body, "<f4")
    split = out.groups.size
    if len(values) != split + len(GLOBAL_CONTROLS):
        raise FrameError(f"a control for {split // len(GROUP_CONTROLS)} groups has {len(values)} numbers")
    out.groups[:] = values[:split].reshape(out.groups.shape)
    out.globals[:] = values[split:]
