"""`both`: runs a test on the torch path and, where the process interprets Triton, on the kernels."""

from __future__ import annotations

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
_either = pytest.mark.parametrize(
    "implementation",
    [pytest.param("off", id="torch"), pytest.param("interpret", id="triton", marks=needs_interpreter)],
    indirect=True,
)


def both(test):
    """Parametrise a test over the implementations; it need not take the argument."""
    return _either(pytest.mark.usefixtures("implementation")(test))
