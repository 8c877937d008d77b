"""Fixtures of tests of workloads; modules with a `library` of their own use that."""

from __future__ import annotations

import numpy as np
import pytest
from workload_kit import service_s

from pikv_env.traces import TraceLibrary, synthetic_library


@pytest.fixture(scope="session")
def library() -> TraceLibrary:
    return synthetic_library(0, contents_per_family=16)


@pytest.fixture(scope="session")
def unit_load(library: TraceLibrary) -> float:
    """The load at which about one request arrives per second."""
    pairs = zip(library.prompt_tokens.tolist(), library.output_tokens.tolist(), strict=True)
    return float(np.mean([service_s(p, o) for p, o in pairs]))
