"""Which implementation runs: Triton on CUDA tensors, torch on others."""

from __future__ import annotations

import os

from torch import Tensor

CHOICES = ("auto", "off", "interpret")


def use_triton(tensor: Tensor) -> bool:
    """Whether a call on `tensor` runs a Triton kernel.

    ``PIKV_TRITON=auto`` (default) runs the kernels on CUDA tensors; ``off`` never; ``interpret`` on CPU tensors too,
    which needs ``TRITON_INTERPRET=1`` from the start of the process (tests).

    Raises:
        ValueError: ``PIKV_TRITON`` is none of these.
    """
    choice = os.environ.get("PIKV_TRITON", "auto")
    if choice not in CHOICES:
        raise ValueError(f"PIKV_TRITON must be auto, off or interpret, got {choice!r}")
    return choice == "interpret" or (choice == "auto" and tensor.is_cuda)
