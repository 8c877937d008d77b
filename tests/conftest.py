"""Every test starts from the same random state, so that a bound which holds today holds tomorrow."""

from __future__ import annotations

import random
import sys

import pytest


@pytest.fixture(autouse=True)
def one_random_state() -> None:
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
