from __future__ import annotations

import pytest


@pytest.fixture
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Chooses torch (``off``) or the interpreted kernels (``interpret``) for one test."""
    monkeypatch.setenv("PIKV_TRITON", request.param)
    return request.param
